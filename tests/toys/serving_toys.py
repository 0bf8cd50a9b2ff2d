"""What the tests of serving share: tiny ONNX models, a registry, a stand-in for Triton, and a real one."""

import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import PromotionError
from pipeline.files import sha256
from pipeline.machine import places
from pipeline.models.spec import ModelSpec, Preprocessing, image_classifier
from pipeline.records.candidates import Candidate, Candidates, save_candidates
from pipeline.records.engines import ENGINE_FILE, Engine, Profile
from pipeline.records.measures import Parity
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.triton import disk, server
from pipeline.serving.triton.calls import Answer, Served
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.golden import Golden
from pipeline.serving.triton.repository import ATTESTED, Artifact, served_versions, version_directories
from pipeline.settings.serving import Promote

QUICK = Promote(load_timeout_s=5.0, observe_s=0.0, probes=4, max_p99_ratio=1e6)
"""Settings of a promotion that neither waits nor looks at a busy machine's latencies."""
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


def write_candidates(directory, names=("teacher", "int8")):
    """An export_onnx output of tiny linear models."""
    parity = Parity(images=1, max_difference=0.0, mean_difference=0.0, changed_predictions=0)
    listed = []
    for factor, name in enumerate(names, start=1):
        file = write_onnx(directory / name / "model.onnx", factor)
        (directory / name / "model.json").write_text(spec().model_dump_json())
        listed.append(
            Candidate(
                name=name,
                file=f"{name}/model.onnx",
                sha256=sha256(file),
                size_bytes=file.stat().st_size,
                parameters=12,
                macs=12,
                precision="float32",
                target="any",
                source="teacher",
                parity=parity,
            )
        )
    save_candidates(directory, Candidates(candidates=tuple(listed), labels=spec().labels))
    return directory


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def artifact(directory: Path, factor: float, candidate: str = "int8", **options: bool) -> Artifact:
    path = write_onnx(directory / f"{candidate}-{factor:g}" / "model.onnx", factor, **options)
    (path.parent / "model.json").write_text(spec().model_dump_json())
    return Artifact(path, spec(), sha256(path), candidate)


def golden(of: Artifact, count: int = 4) -> Golden:
    runner = OnnxRunner(of.onnx)
    inputs = {"image": images(count)}
    return Golden(inputs, runner(inputs))


def engine(of: Artifact, tmp_path: Path, **changed: object) -> Artifact:
    """`of` with a file that stands for a TensorRT engine for batches of 1 to 64."""
    (tmp_path / "model.plan").write_bytes(b"a plan")
    record = Engine(
        candidate="int8",
        file="model.plan",
        sha256=sha256(tmp_path / "model.plan"),
        size_bytes=6,
        onnx_sha256=of.sha256,
        builder="tensorrt",
        builder_version="11.0",
        gpu="a GPU",
        driver="1",
        targets=("SM90",),
        profile=Profile(min=1, opt=32, max=64),
        build_seconds=1.0,
        layers_from="engine",
        layers=1,
        precisions={},
    ).model_copy(update=changed)
    (tmp_path / ENGINE_FILE).write_text(record.model_dump_json())
    return Artifact(of.onnx, of.spec, of.sha256, of.candidate, tmp_path / "model.plan")


class Registry:
    """`types.Registry` in a directory, so that it outlives a killed process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> dict:
        return json.loads(self.path.read_text()) if self.path.exists() else {"tags": [], "aliases": {}}

    def _files(self, version: int) -> Path:
        return self.path.with_suffix(".files") / str(version)

    def register(self, name: str, directory: Path, tags: dict[str, str]) -> int:
        state = self._read()
        state["tags"].append(tags)
        self.path.write_text(json.dumps(state))
        shutil.copytree(directory, self._files(self.versions), dirs_exist_ok=True)
        return self.versions

    def attach(self, name: str, version: int, file: Path) -> None:
        self._files(version).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, self._files(version))

    def fetch(self, name: str, version: int, directory: Path) -> dict[str, str]:
        if version > self.versions or not self._files(version).exists():
            raise PromotionError(f"the registry has no version {version} of {name}")
        shutil.copytree(self._files(version), directory, dirs_exist_ok=True)
        return self._read()["tags"][version - 1]

    def set_alias(self, name: str, alias: str, version: int) -> None:
        state = self._read()
        state["aliases"][alias] = version
        self.path.write_text(json.dumps(state))

    def aliases(self, name: str) -> dict[str, int]:
        return self._read()["aliases"]

    def version_with_sha(self, name: str, sha256: str) -> int | None:
        found = [number + 1 for number, tags in enumerate(self._read()["tags"]) if tags["sha256"] == sha256]
        return max(found, default=None)

    @property
    def versions(self) -> int:
        return len(self._read()["tags"])


class FakeTriton:
    """Triton's explicit control over a real repository: it keeps what it loaded (as hashes) in a file.

    It loads all versions that the policy names or none, and answers from the highest. Files are named by their hash:
    `broken` ones fail to load, `wrong` ones answer something else when served, `failing` ones fail each request of one
    row, `slow` ones take 200 ms for it, `changed` ones predict the first class for everything of one row.
    """

    def __init__(self, repository: Path, state: Path) -> None:
        self.repository, self.state = repository, state
        self.broken: set[str] = set()
        self.wrong: set[str] = set()
        self.failing: set[str] = set()
        self.slow: set[str] = set()
        self.changed: set[str] = set()
        self.stuck: dict[str, dict[int, str]] = {}
        """Model -> version -> a state that never changes."""
        self.dead = False
        self.loads: list[str] = []
        self.counts: dict[int, list[int]] = {}
        self.runners: dict[str, OnnxRunner] = {}

    def loaded(self) -> dict[str, dict[str, str]]:
        if self.dead:
            raise TritonError("Triton is away", "UNAVAILABLE")
        return json.loads(self.state.read_text()) if self.state.exists() else {}

    def _keep(self, loaded: dict[str, dict[str, str]]) -> None:
        """Threads that read meanwhile see the file as it was or as it is."""
        new = self.state.with_suffix(f".{threading.get_ident()}")
        new.write_text(json.dumps(loaded))
        new.replace(self.state)

    def die(self) -> None:
        """As kill -9: nobody is answered any more."""
        self.dead = True

    def restart(self) -> None:
        """Come back and load what a real one loads at its start; a model that fails is left out."""
        self.dead = False
        self._keep({})
        for model in server.served_models(self.repository):
            with contextlib.suppress(TritonError):
                self.load(model, 1.0)

    def index(self) -> dict[str, dict[int, str]]:
        found = {path.parent.name: {} for path in self.repository.glob("*/config.pbtxt")}
        loaded = {name: dict.fromkeys(map(int, has), "READY") for name, has in self.loaded().items()}
        for name, states in self.stuck.items():
            loaded[name] = loaded.get(name, {}) | states
        return found | loaded

    def load(self, model: str, timeout: float) -> None:
        self.loads.append(model)
        directory, loaded = self.repository / model, self.loaded()
        wanted = {}
        if not (directory / "config.pbtxt").exists():
            raise TritonError(f"load failed: {model} is not in the repository", "INTERNAL")
        for version in served_versions(directory):
            file = directory / str(version) / "model.onnx"
            found = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "missing"
            if found in self.broken | {"missing"}:
                raise TritonError(f"load failed: version {version}: {found[:7]}", "INVALID_ARGUMENT")
            wanted[str(version)] = found
        self._keep({**loaded, model: wanted})

    def unload(self, model: str) -> None:
        self._keep({name: has for name, has in self.loaded().items() if name != model})

    def served(self, model: str) -> dict[int, Served]:
        self.loaded()
        return {version: Served(good, bad, 0.001 * good) for version, (good, bad) in self.counts.items()}

    def infer(self, model: str, inputs: dict, version: str = "", *, attest: bool = False) -> Answer:
        has = self.loaded().get(model, {})
        if not has:
            raise TritonError(f"{model} is not ready", "UNAVAILABLE")
        number = int(version) if version else max(map(int, has))
        found = has[str(number)]
        count = len(next(iter(inputs.values())))
        counted = self.counts.setdefault(number, [0, 0])
        counted[found in self.failing and count == 1] += 1
        if count == 1 and found in self.failing:
            raise TritonError("out of luck", "INTERNAL")
        if count == 1 and found in self.slow:
            time.sleep(0.2)
        if found not in self.runners:
            self.runners[found] = OnnxRunner(version_directories(self.repository / model)[number] / "model.onnx")
        outputs = dict(self.runners[found](inputs))
        if found in self.wrong:
            outputs["logits"] = outputs["logits"] * 2 + 1
        if count == 1 and found in self.changed:
            outputs["logits"] = np.array([[1.0, 0.0, 0.0]], np.float32)
        if attest:
            outputs[ATTESTED] = np.tile(np.frombuffer(bytes.fromhex(found), np.uint8), (count, 1))
        return Answer(outputs, number)


def remove_model(client: Client, name: str) -> None:
    """Take the model `name` away from the server and out of the repository."""
    client.unload(name)
    if (places.triton_repository() / name).exists():
        disk.remove(places.triton_repository() / name)


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
        command, environment = server.command(self.repository, **self.ports)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        with Client(self.url, timeout=1) as client:
            while not client.live():
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.05)

    def wait_ready(self, model: str) -> None:
        """Wait until `model` answers, as it does after a restart."""
        deadline = time.monotonic() + 60
        with Client(self.url, timeout=1) as client:
            while not client.ready(model):
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.05)

    def kill(self) -> None:
        """As kill -9, with its stubs; what it left in shared memory is removed, as nobody else would."""
        assert self.process is not None
        if self.process.poll() is not None:
            return
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        shared = {line.split()[-1] for line in maps.splitlines() if "/dev/shm/triton" in line}
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        for path in shared:
            Path(path).unlink(missing_ok=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()  # a killed server would leave its shared memory behind
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Clients:
    """Closed-loop clients in threads; each answer must be bit-equal to what one of the allowed files gives.

    They think for some milliseconds between two requests: what is tested is who is answered and not how many, and other
    tests need the cores.
    """

    def __init__(self, model, files, count=4):
        self.model, self.inputs = model, {"image": images(1, seed=5)}
        self.allowed = [OnnxRunner(file)(self.inputs)["logits"] for file in files]
        self.failed, self.wrong, self.versions = [], 0, []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self):
        with Client() as client:
            while not self._stop.is_set():
                try:
                    answer = client.infer(self.model, self.inputs)
                except TritonError as error:
                    self.failed.append(str(error))
                    continue
                self.versions.append(answer.version)
                self.wrong += not any(np.array_equal(answer.outputs["logits"], one) for one in self.allowed)
                self._stop.wait(0.004)

    def see(self, version):
        """Wait until a client was answered by `version`."""
        deadline = time.monotonic() + 30
        while version not in self.versions:
            assert time.monotonic() < deadline, f"nobody was answered by version {version}"
            time.sleep(0.01)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
