"""docker-compose.yml held to the compose specification and to our own rules. No Docker is needed.

Where the `docker compose` command is at hand, it is asked too: `config` needs no engine.
"""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import check_jsonschema
import jsonschema
import pytest

from pipeline.machine.places import port
from pipeline.serving.triton import server
from pipeline.settings import reader

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = reader.read((ROOT / "docker-compose.yml").read_text(encoding="utf-8"), "docker-compose.yml")
SERVICES = COMPOSE["services"]
ONE_SHOT = {"airflow-init"}
DOCKERFILES = sorted((ROOT / "infra").rglob("Dockerfile"))
SECRET_WORDS = re.compile(
    r"PASSWORD|SECRET|TOKEN|FERNET|CREDENTIAL|PRIVATE|_KEY|SQL_ALCHEMY_CONN|DATABASE_URI|STORE_URI"
)

each_service = pytest.mark.parametrize("name", SERVICES)
each_running = pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))


def environment(name):
    return SERVICES[name].get("environment", {})


def default(text):
    """`text` as Compose reads it with an empty environment: ${NAME:-default} is the default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


def mounts(name):
    """(source, target, options) of every mount."""
    for volume in SERVICES[name].get("volumes", []):
        source, target, *options = volume.split(":")
        yield source, target, options


def dockerfile(name):
    build = SERVICES[name].get("build")
    if build is None:
        return None
    build = {"context": build} if isinstance(build, str) else build
    return ROOT / build["context"] / build.get("dockerfile", "Dockerfile")


def test_it_follows_the_compose_specification():
    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    checker = jsonschema.validators.validator_for(json.loads(schema.read_text(encoding="utf-8")))
    problems = checker(json.loads(schema.read_text(encoding="utf-8"))).iter_errors(COMPOSE)
    assert [f"{list(problem.absolute_path)}: {problem.message}" for problem in problems] == []


def test_docker_compose_itself_accepts_it(tmp_path):
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("no `docker compose` on this machine")
    done = subprocess.run(
        ["docker", "compose", "--profile", "*", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_has_every_part_of_the_layout():
    assert set(SERVICES) >= {
        "postgres", "mlflow", "airflow-init", "airflow-apiserver", "airflow-scheduler", "airflow-dag-processor",
        "airflow-triggerer", "triton", "triton-gpu",
    }  # fmt: skip


@each_service
def test_images_are_pinned(name):
    tag = default(SERVICES[name]["image"]).rpartition("/")[2].partition(":")[2]
    assert re.search(r"\d+\.\d+", tag), f"{name}: the image has no version: {SERVICES[name]['image']}"
    assert "latest" not in tag


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_base_images_are_pinned(path):
    text = path.read_text(encoding="utf-8")
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.M))
    bases = [image for image in re.findall(r"^FROM (\S+)", text, re.M) if image not in stages]
    assert bases and all(re.search(r":\d+\.\d+", image) for image in bases), bases
    assert re.search(r"^USER 50000:0$", text, re.M), "a container needs no root"


@each_service
def test_what_it_builds_and_mounts_from_here_exists(name):
    if path := dockerfile(name):
        assert path.is_file()
        target = SERVICES[name]["build"]["target"] if isinstance(SERVICES[name]["build"], dict) else None
        assert target is None or f" AS {target}\n" in path.read_text(encoding="utf-8")
    for source, _, _ in mounts(name):
        assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], source


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_dockerfile_copies_exists_and_is_in_the_build_context(path):
    context = path.parent if path.parent.name == "triton" else ROOT
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?:--\S+ )*(.+)$", path.read_text(encoding="utf-8"), re.M):
        for source in line.split()[:-1]:
            assert source == "." or (context / source).is_file(), source
            if source != "." and context == ROOT:
                assert source in allowed or source.partition("/")[0] in allowed, f"{source} is in .dockerignore"


def test_no_secret_enters_a_build():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*", "everything is left out but what is named"
    assert not any(line.startswith(("!.env", "!secrets", "!.git", "!.flyweight")) for line in ignored)


@each_running
def test_every_published_port_is_on_loopback_and_can_be_moved(name):
    for published in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{FLYWEIGHT_\w+_PORT:-\d+\}:\d+", published), published


def test_ports_are_those_of_the_local_stack():
    published = {default(entry).split(":")[1] for name in SERVICES for entry in SERVICES[name].get("ports", [])}
    local = {str(port(name)) for name in ("airflow", "mlflow", "triton_grpc", "triton_http", "triton_metrics")}
    assert local <= published


@each_running
def test_every_running_service_has_a_health_check_restarts_and_rotates_its_log(name):
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"]["max-size"]


@each_service
def test_no_secret_is_in_the_environment(name):
    """A variable that sounds like a secret names a file, or a command that reads one."""
    for key, value in environment(name).items():
        if SECRET_WORDS.search(key):
            file = re.search(r"/run/secrets/(\w+)$", value)
            passwords_file = key.endswith("PASSWORDS_FILE")  # a path that the entry point fills from a secret
            assert passwords_file or (file and key.endswith(("_CMD", "_FILE"))), f"{name}: {key}={value}"
            assert passwords_file or file[1] in SERVICES[name]["secrets"], f"{name} does not get {file[1]}"
        assert not re.search(r"://\w+:[^@/]+@", str(value)), f"{name}: {key} holds a password"


def test_every_secret_is_a_file_that_make_secrets_writes_and_somebody_reads(tmp_path):
    runpy.run_path(str(ROOT / "infra" / "make_secrets.py"))["make_secrets"](tmp_path / "secrets")
    declared = {name: Path(secret["file"]) for name, secret in COMPOSE["secrets"].items()}
    used = {secret for name in SERVICES for secret in SERVICES[name].get("secrets", [])}
    assert used == set(declared)
    assert {path.name for path in declared.values()} == {path.name for path in (tmp_path / "secrets").iterdir()}
    assert all(path.parent == Path("secrets") for path in declared.values())
    assert "/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_nothing_falls_back_to_a_default_secret():
    """Every ${NAME:-default} of the file is listed in .env.example, and none of them is a secret."""
    names = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))) - {"HOSTNAME"}
    example = dict(
        line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if re.match(r"\w+=", line)
    )
    assert names - {"FLYWEIGHT_GIT_COMMIT"} == set(example) - {"COMPOSE_PROFILES"}
    assert not [name for name in (*names, *example) if SECRET_WORDS.search(name)]


@each_service
def test_it_waits_for_services_that_exist_in_its_profiles(name):
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        needed = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
        assert wait["condition"] == needed
        assert set(SERVICES[other].get("profiles", [])) <= set(SERVICES[name].get("profiles", []))


@pytest.mark.parametrize("kind", ["triton", "airflow-scheduler"])
def test_cpu_and_gpu_differ_in_the_gpu_alone(kind):
    on_cpu, on_gpu = dict(SERVICES[kind]), dict(SERVICES[f"{kind}-gpu"])
    assert (on_cpu.pop("profiles"), on_gpu.pop("profiles")) == (["cpu"], ["gpu"])
    devices = on_gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert on_cpu == on_gpu


def test_only_promotion_may_write_what_triton_serves():
    writers = {
        name for name in SERVICES for source, _, options in mounts(name) if source == "serving" and "ro" not in options
    }
    assert writers == {"airflow-init", "airflow-scheduler", "airflow-scheduler-gpu"}
    for name in ("triton", "triton-gpu"):
        assert ("serving", "/srv/models", ["ro"]) in list(mounts(name))


def test_repository_and_staging_are_on_one_file_system():
    """`places.serving()` is beside the repository: a mount of the repository alone would make the rename a copy."""
    repository = re.search(r"FLYWEIGHT_TRITON_REPOSITORY=(\S+)", (ROOT / "infra/Dockerfile").read_text())[1]
    targets = {target for name in SERVICES for source, target, _ in mounts(name) if source == "serving"}
    assert targets == {str(Path(repository).parent)}


def test_triton_is_started_with_the_flags_of_the_local_server(tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_HOME", str(tmp_path))
    line, _ = server.command(tmp_path, grpc_port=1, http_port=2, metrics_port=3)
    local = {argument.partition("=")[0] for argument in line if argument.startswith("--")}
    script = (ROOT / "infra/triton/serve.sh").read_text(encoding="utf-8")
    production = set(re.findall(r"^    (--[\w-]+)", script, re.M))
    of_this_machine = {"--backend-directory", "--backend-config", "--cache-directory", "--allow-gpu-metrics"}
    of_loopback = {f"--{kind}-{what}" for kind in ("grpc", "http", "metrics") for what in ("address", "port")}
    assert production == local - of_this_machine - of_loopback
    assert f":{server.CONTROL_KEY}=" in script
    assert all(f"*{mark}*" in script for mark in server.TEMPORARY)


def test_triton_loads_what_was_promoted_and_no_half_tried_candidate(tmp_path):
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "tritonserver"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    (tmp_path / "triton_control_key").write_text("key")
    for model in ("proxy", "proxy__cand", "proxy__eval_int8", "other"):
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "config.pbtxt").touch()
    settings = {
        "PATH": f"{fake.parent}:/usr/bin:/bin",
        "SECRETS": str(tmp_path),
        "REPOSITORY": str(tmp_path / "models"),
    }
    script = ROOT / "infra/triton/serve.sh"
    arguments = subprocess.run([script], env=settings, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [argument for argument in arguments if "load-model" in argument] == [
        "--load-model=other",
        "--load-model=proxy",
    ]
    assert "--grpc-restricted-protocol=model-repository,logging,trace:flyweight-control=key" in arguments


def test_triton_runs_the_onnx_runtime_of_the_lock():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = re.search(r"pip install .*?((?:[\w-]+==\S+ ?)+)$", (ROOT / "infra/triton/Dockerfile").read_text(), re.M)[1]
    for pin in pins.split():
        assert pin in lock


def test_mlflow_lets_the_containers_in():
    hosts = default(environment("mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"]).split(",")
    assert environment("airflow-scheduler")["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "mlflow:5000" in hosts and "localhost:5000" in hosts and "*" not in hosts


def test_airflow_makes_the_pools_that_the_graph_names():
    from pipeline.graph import STAGES
    from pipeline.services.airflow_settings import POOLS

    assert {stage.pool for stage in STAGES.values()} - {"default_pool"} <= set(POOLS)
