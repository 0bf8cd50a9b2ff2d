"""What promotion may rely on in a server, held by Triton itself and by the stand-in that all other tests use."""

import shutil
import time

import numpy as np
import pytest
from serving_toys import FakeTriton, artifact, images, remove_model

from pipeline.machine import places
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.calls import Served
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.control import busy, is_reachable, states, wait_until_gone
from pipeline.serving.triton.errors import TritonError
from pipeline.serving.triton.repository import ATTESTED
from pipeline.settings.serving import Serving

MODEL = "contract"


@pytest.fixture(params=["stand-in", pytest.param("Triton", marks=pytest.mark.integration)])
def control(request, tmp_path):
    if request.param == "stand-in":
        request.getfixturevalue("home")
        yield FakeTriton(places.triton_repository(), tmp_path / "loaded.json")
        return
    request.getfixturevalue("triton")
    with Client(timeout=60) as client:
        yield client
        remove_model(client, MODEL)


@pytest.fixture
def place(control, tmp_path):
    """Put a version into the repository without loading anything; return its artifact."""

    def put(version, factor, versions, name=MODEL):
        directory = places.triton_repository() / name
        one = artifact(tmp_path / str(version), factor)
        settings = Serving(model=name, max_batch_size=8, instances=1, warmup=False)
        if directory.exists():
            repository.write_version(tmp_path / "new", one, settings, version)
            disk.rename(tmp_path / "new", directory / str(version))
        else:
            repository.write_model(directory, one, settings, version)
        disk.replace(
            directory / repository.CONFIG_FILE,
            repository.with_versions(directory / repository.CONFIG_FILE, versions),
        )
        return one

    return put


def test_what_is_there_answers_only_when_it_was_loaded(control, place):
    one = place(1, 1.0, [1])
    assert is_reachable(control)
    assert states(control, MODEL) == {}
    with pytest.raises(TritonError):
        control.infer(MODEL, {"image": images(1)})
    control.load(MODEL, 60)
    assert states(control, MODEL) == {1: "READY"}
    assert busy(control, MODEL, 1.0) == {}
    answer = control.infer(MODEL, {"image": images(3)})
    assert answer.version == 1
    np.testing.assert_array_equal(answer.outputs["logits"], OnnxRunner(one.onnx)({"image": images(3)})["logits"])


def test_who_asks_for_it_gets_the_hash_of_what_answers_and_nobody_else(control, place):
    one = place(1, 1.0, [1])
    control.load(MODEL, 60)
    assert set(control.infer(MODEL, {"image": images(2)}).outputs) == {"logits"}
    attested = control.infer(MODEL, {"image": images(2)}, attest=True).outputs[ATTESTED]
    assert [row.tobytes().hex() for row in attested] == [one.sha256] * 2


def test_the_highest_of_the_versions_in_the_policy_answers_and_each_does_by_number(control, place):
    place(1, 1.0, [1])
    control.load(MODEL, 60)
    place(2, 2.0, [1, 2])
    assert states(control, MODEL) == {1: "READY"}  # until it is loaded
    control.load(MODEL, 60)
    assert states(control, MODEL) == {1: "READY", 2: "READY"}
    versions = [control.infer(MODEL, {"image": images(1)}, version).version for version in ("", "1", "2")]
    assert versions == [2, 1, 2]


def test_a_load_that_fails_says_so_and_what_was_served_serves_on(control, place):
    place(1, 1.0, [1])
    control.load(MODEL, 60)
    place(2, 2.0, [1, 2])
    (places.triton_repository() / MODEL / "2" / "model.onnx").unlink()
    with pytest.raises(TritonError) as failed:
        control.load(MODEL, 60)
    assert failed.value.status == "INVALID_ARGUMENT"
    assert states(control, MODEL)[1] == "READY"
    assert control.infer(MODEL, {"image": images(1)}).version == 1


def test_a_model_that_is_not_there_cannot_be_loaded_or_asked(control):
    with pytest.raises(TritonError) as failed:
        control.load("nobody", 60)
    assert failed.value.status == "INTERNAL"
    with pytest.raises(TritonError):
        control.infer("nobody", {"image": images(1)})
    assert states(control, "nobody") == {}


def test_what_was_unloaded_is_gone_and_may_be_unloaded_again(control, place):
    place(1, 1.0, [1])
    control.load(MODEL, 60)
    control.unload(MODEL)
    wait_until_gone(control, MODEL, 30)
    with pytest.raises(TritonError):
        control.infer(MODEL, {"image": images(1)})
    control.unload(MODEL)
    shutil.rmtree(places.triton_repository() / MODEL)
    control.unload(MODEL)


def test_each_version_counts_what_it_answered(control, place):
    place(1, 1.0, [1])
    control.load(MODEL, 60)
    before = control.served(MODEL).get(1, Served(0, 0, 0.0))
    for _ in range(3):
        control.infer(MODEL, {"image": images(1)})
    deadline = time.monotonic() + 10
    while control.served(MODEL)[1].answered < before.answered + 3 and time.monotonic() < deadline:
        time.sleep(0.01)  # Triton answers first and counts then
    counted = control.served(MODEL)[1]
    assert (counted.answered, counted.failed) == (before.answered + 3, before.failed)
    assert counted.seconds > 0
