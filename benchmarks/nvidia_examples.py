"""Run NVIDIA's own client examples for their model `simple` against a Triton that serves ours.

    flyweight up mlflow triton
    python benchmarks/nvidia_examples.py

It writes the model (two INT32 inputs of 16, their sum and their difference), promotes it with `flyweight promote --onnx`,
fetches the examples of a pinned commit and runs each as it is, in an environment that has NVIDIA's client and nothing of
ours: it passes if it ends with 0. Those that load and unload models are left out, as model control takes a key that they
do not send. ``--examples DIRECTORY`` takes the scripts from there; ``--url`` asks another server, at which `simple` is
served already.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from peers.environments import environment

from pipeline.machine import places

COMMIT = "2eaf58e032581804c1f0b61a9f6317a1d1c18b53"
SOURCE = "https://raw.githubusercontent.com/triton-inference-server/client"
SCRIPTS = (
    "simple_grpc_infer_client.py",
    "simple_grpc_async_infer_client.py",
    "simple_grpc_aio_infer_client.py",
    "simple_grpc_health_metadata.py",
    "simple_grpc_aio_health_metadata.py",
    "simple_grpc_keepalive_client.py",
    "simple_grpc_aio_keepalive_client.py",
    "simple_grpc_custom_args_client.py",
    "simple_grpc_aio_custom_args_client.py",
    "simple_grpc_shm_client.py",
    "simple_grpc_aio_shm_client.py",
    "grpc_explicit_int_content_client.py",
    "reuse_infer_objects_client.py",
)
OPTIONS = {"reuse_infer_objects_client.py": ("-i", "grpc")}
"""What a script must be told beside the address: this one speaks HTTP unless told otherwise."""


def main() -> None:
    """Write, promote, fetch, run; exit with the number of examples that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=Path, help="directory that holds the scripts")
    parser.add_argument("--url", help="host:port of a Triton that serves `simple`")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.url is None:
            model = write_model(Path(folder) / "simple.onnx")
            promote = ["promote", "--onnx", str(model), "--name", "simple"]
            subprocess.run([sys.executable, "-m", "pipeline", *promote], check=True)
        url, python, failed = given.url or places.triton_grpc(), environment("nvidia") / "bin" / "python", 0
        for name in SCRIPTS:
            script = (given.examples or Path(folder)) / name
            if given.examples is None:
                fetch(name, script)
            elif not script.is_file():
                print(f"{'absent':8} {name}")
                continue
            line = [str(python), str(script), "-u", url, *OPTIONS.get(name, ())]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            failed += done.returncode != 0
            last = (done.stdout + done.stderr).strip().splitlines()[-1:] or [""]
            print(f"{'passed' if done.returncode == 0 else 'FAILED':8} {name}  {last[0]}", flush=True)
    sys.exit(failed)


def write_model(path: Path) -> Path:
    """Write (N, 16) + (N, 16) and (N, 16) - (N, 16) of int32, under the names that the examples use."""

    def tensor(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 16])

    graph = helper.make_graph(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        "simple",
        [tensor("INPUT0"), tensor("INPUT1")],
        [tensor("OUTPUT0"), tensor("OUTPUT1")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def fetch(name: str, target: Path) -> None:
    """Get one example of the pinned commit."""
    url = f"{SOURCE}/{COMMIT}/src/python/examples/{name}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            target.write_bytes(answer.read())
    except (urllib.error.URLError, TimeoutError) as error:
        sys.exit(
            f"{url} cannot be fetched ({error}): get the examples yourself and name them with --examples DIRECTORY"
        )


if __name__ == "__main__":
    main()
