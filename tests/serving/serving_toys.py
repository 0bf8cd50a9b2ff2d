"""What the tests of serving share: tiny ONNX models, a registry, a stand-in for Triton, and a real one."""

import hashlib
import json
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.checkpoint import ModelSpec, Preprocessing, image_classifier, sha256
from pipeline.runners import OnnxRunner
from pipeline.serving import local_triton
from pipeline.serving.client import Answer, Client, TritonError
from pipeline.serving.promotion import Golden
from pipeline.serving.repository import ATTESTED, Artifact, served_versions, version_directories

LABELS = ("none", "some", "all")
SHAPE = (1, 2, 2)


def spec(labels: tuple[str, ...] = LABELS) -> ModelSpec:
    return image_classifier("resnet", {}, SHAPE, labels, Preprocessing(mean=(0.5,), std=(0.5,)))


def write_onnx(path: Path, factor: float, classes: int = 3, zeros: bool = False) -> Path:
    """A linear model (N, 1, 2, 2) uint8 -> (N, classes): sums of pixels times `factor`; with `zeros` it divides by 0."""
    weights = np.arange(4 * classes, dtype=np.float32).reshape(4, classes) * np.float32(factor)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Div", ["product", "divisor"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.float32(0.0 if zeros else 1.0), "divisor"),
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def artifact(directory: Path, factor: float, candidate: str = "int8", **options: bool) -> Artifact:
    path = write_onnx(directory / f"{candidate}-{factor:g}" / "model.onnx", factor, **options)
    return Artifact(path, spec(), sha256(path), candidate)


def golden(of: Artifact, count: int = 4) -> Golden:
    runner = OnnxRunner(of.onnx)
    inputs = {"image": images(count)}
    return Golden(inputs, runner(inputs))


class Registry:
    """`types.Registry` in a file, so that it outlives a killed process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> dict:
        return json.loads(self.path.read_text()) if self.path.exists() else {"shas": [], "aliases": {}}

    def register(self, name: str, directory: Path, tags: dict[str, str]) -> int:
        state = self._read()
        state["shas"].append(tags["sha256"])
        self.path.write_text(json.dumps(state))
        return len(state["shas"])

    def set_alias(self, name: str, alias: str, version: int) -> None:
        state = self._read()
        state["aliases"][alias] = version
        self.path.write_text(json.dumps(state))

    def version_with_sha(self, name: str, sha256: str) -> int | None:
        found = [number + 1 for number, known in enumerate(self._read()["shas"]) if known == sha256]
        return max(found, default=None)

    @property
    def aliases(self) -> dict[str, int]:
        return self._read()["aliases"]

    @property
    def versions(self) -> int:
        return len(self._read()["shas"])


class FakeTriton:
    """Triton's explicit control over a real repository: it keeps what it loaded (as hashes) in a file.

    It loads all versions that the policy names or none, and answers from the highest. `wrong` are factors by which a
    file's answers are off when served, `broken` hashes that fail to load.
    """

    def __init__(self, repository: Path, state: Path) -> None:
        self.repository, self.state = repository, state
        self.broken: set[str] = set()
        self.wrong: set[str] = set()

    def loaded(self) -> dict[str, dict[str, str]]:
        return json.loads(self.state.read_text()) if self.state.exists() else {}

    def index(self) -> dict[str, dict[int, str]]:
        found = {path.parent.name: {} for path in self.repository.glob("*/config.pbtxt")}
        return found | {name: dict.fromkeys(map(int, has), "READY") for name, has in self.loaded().items()}

    def load(self, model: str, timeout: float) -> None:
        directory, loaded = self.repository / model, self.loaded()
        wanted = {}
        for version in served_versions(directory):
            file = directory / str(version) / "model.onnx"
            found = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "missing"
            if found in self.broken | {"missing"}:
                raise TritonError(f"load failed: version {version}: {found[:7]}", "INTERNAL")
            wanted[str(version)] = found
        self.state.write_text(json.dumps({**loaded, model: wanted}))

    def unload(self, model: str) -> None:
        self.state.write_text(json.dumps({name: has for name, has in self.loaded().items() if name != model}))

    def infer(self, model: str, inputs: dict, version: str = "", *, attest: bool = False) -> Answer:
        has = self.loaded().get(model, {})
        if not has:
            raise TritonError(f"{model} is not ready", "UNAVAILABLE")
        number = max(map(int, has))
        file = version_directories(self.repository / model)[number] / "model.onnx"
        outputs = dict(OnnxRunner(file)(inputs))
        if has[str(number)] in self.wrong:
            outputs["logits"] = outputs["logits"] * 2 + 1
        count = len(next(iter(inputs.values())))
        return Answer(
            {**outputs, ATTESTED: np.tile(np.frombuffer(bytes.fromhex(has[str(number)]), np.uint8), (count, 1))}, number
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A real Triton on free ports."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repository = home / "triton_repo"
        self.log = home / "triton.log"
        self.ports = {"grpc_port": free_port(), "http_port": free_port(), "metrics_port": free_port()}
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.ports['grpc_port']}"

    def start(self) -> None:
        command, environment = local_triton.command(self.repository, **self.ports)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        with Client(self.url, timeout=1) as client:
            while not client.live():
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()  # a killed server would leave its shared memory behind
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
