import json

import numpy as np
import pytest
from serving_toys import LABELS, images, write_candidates, write_onnx

from pipeline.data import shards
from pipeline.errors import PromotionError
from pipeline.files import sha256
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.triton.calls import Answer
from pipeline.settings.serving import Serving, VerifyServed
from pipeline.stages.verify_served import verify_served


class StandIn:
    """A client of a server that serves `file` as `version`."""

    def __init__(self, file, version):
        self.file, self.version = file, version

    def attested(self, model, version=""):
        return sha256(self.file), self.version

    def infer(self, model, inputs, version="", *, attest=False):
        return Answer(OnnxRunner(self.file)(inputs), self.version)

    def close(self):
        pass


@pytest.fixture
def run(tmp_path):
    labels = np.arange(60, dtype=np.int64) % 3
    splits = {name: (images(60, seed), labels) for seed, name in enumerate(("train", "validation", "test"))}
    shards.write(tmp_path / "data", name="toy", labels=LABELS, splits=splits)
    candidates = write_candidates(tmp_path / "candidates")
    promotion = tmp_path / "promotion"
    promotion.mkdir()
    record = {"candidate": "int8", "sha256": sha256(candidates / "int8" / "model.onnx"), "version": 3}
    (promotion / "promotion.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    out.mkdir()

    def stage(client, count=50):
        return verify_served(
            VerifyServed(images=count),
            data=tmp_path / "data",
            candidates=candidates,
            promotion=promotion,
            serving=Serving(max_batch_size=16),
            out=out,
            client=client,
        )

    stage.file, stage.out = candidates / "int8" / "model.onnx", out
    return stage


def test_what_was_promoted_serves(run):
    metrics = run(StandIn(run.file, 3))
    record = json.loads((run.out / "served.json").read_text())
    assert (record["model"], record["version"], record["sha256"]) == ("proxy", 3, sha256(run.file))
    assert metrics["images"] == 50
    assert metrics["agreement"] == metrics["bit_equal"] == 1.0
    logits = OnnxRunner(run.file)({"image": images(60, 2)[:50]})["logits"]
    assert metrics["accuracy"] == pytest.approx((logits.argmax(axis=1) == np.arange(50) % 3).mean())


def test_no_more_images_than_there_are(run):
    assert run(StandIn(run.file, 3), count=500)["images"] == 60


def test_another_version_is_refused(run):
    with pytest.raises(PromotionError, match="proxy answers with version 2, but 3 was promoted"):
        run(StandIn(run.file, 2))


def test_other_bytes_are_refused(run, tmp_path):
    with pytest.raises(PromotionError, match=r"proxy answers with sha256 .* was promoted: something else was promoted"):
        run(StandIn(write_onnx(tmp_path / "other.onnx", 9.0), 3))


def test_other_answers_are_refused_after_they_are_written_down(run, tmp_path):
    client = StandIn(run.file, 3)
    client.infer = lambda model, inputs: Answer({"logits": -OnnxRunner(run.file)(inputs)["logits"]}, 3)
    with pytest.raises(PromotionError, match="does not answer as its file does on the first 50 test images: 50 of 50"):
        run(client)
    assert json.loads((run.out / "served.json").read_text())["bit_equal"] == 0.0
