import json

import pytest
import torch
from training_jobs import FIT, curves, history, job, run, same, weights

from pipeline.data.manifest import load_manifest
from pipeline.data.split import open_split
from pipeline.errors import SettingsError
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.training import loop
from pipeline.training.validation import evaluate


def test_a_training_learns_and_leaves_a_checkpoint_and_a_history(tiny_data, tmp_path):
    out = run(job(tiny_data, tmp_path))
    assert {path.name for path in out.iterdir()} == {"model.json", "model.safetensors", "history.json"}
    spec, network = checkpoint.load(out)
    assert spec.labels == ("nw", "ne", "sw", "se") and spec.preprocessing.mean == load_manifest(tiny_data).mean
    assert [row["epoch"] for row in history(out)] == [1, 2, 3]
    assert history(out)[-1]["train_loss"] < history(out)[0]["train_loss"]
    assert evaluate(network, spec, open_split(tiny_data, "validation"))[0] > 0.9


def test_the_best_epoch_on_validation_is_kept(tiny_data, tmp_path, monkeypatch):
    scores = iter([(0.5, 1.0), (0.9, 1.0), (0.7, 1.0)])
    after: list[torch.Tensor] = []

    def score(network, spec, split):
        after.append(network.head.weight.detach().clone())
        return next(scores)

    monkeypatch.setattr(loop, "evaluate", score)
    out = run(job(tiny_data, tmp_path))
    assert torch.equal(weights(out)["head.weight"], after[1]) and not torch.equal(after[1], after[2])


def test_the_same_seed_gives_the_same_weights(tiny_data, tmp_path):
    assert same(*(run(job(tiny_data, tmp_path / name)) for name in ("a", "b")))


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "fit",
    [FIT, FIT.model_copy(update={"optimizer": "adamw", "lr": 0.01, "ema_decay": 0.9, "random_erasing": 0.5, "amp": "off"})],
    ids=["sgd", "adamw_ema_erasing_float32"],
)  # fmt: skip
def test_a_resumed_training_ends_like_one_that_was_never_stopped(tiny_data, tmp_path, monkeypatch, fit):
    whole = run(job(tiny_data, tmp_path / "whole", fit))
    broken = job(tiny_data, tmp_path / "broken", fit)
    step = loop.Training._step

    def stop_in_the_third_epoch(self, batch, number):
        if self.epoch == 2 and number % self.steps == 4:
            raise Killed
        return step(self, batch, number)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "_step", stop_in_the_third_epoch)
        with pytest.raises(Killed):
            run(broken)
    begun = []
    seed = loop._seed
    monkeypatch.setattr(loop, "_seed", lambda number, epoch: (begun.append(epoch), seed(number, epoch))[1])
    resumed = run(broken)
    assert begun == [2]
    assert curves(resumed) == curves(whole)
    assert same(whole, resumed)


def test_a_finished_training_that_is_run_again_trains_no_more(tiny_data, tmp_path, monkeypatch):
    the_job = job(tiny_data, tmp_path)
    before = weights(run(the_job))
    monkeypatch.setattr(loop.Training, "run_epoch", lambda self: pytest.fail("it trained"))
    after = weights(run(the_job))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_snapshot_of_other_settings_is_not_taken_up(tiny_data, tmp_path):
    run(job(tiny_data, tmp_path))
    out = run(job(tiny_data, tmp_path, FIT.model_copy(update={"epochs": 1})))
    assert len(history(out)) == 1


def test_a_training_that_diverges_says_what_to_lower(tiny_data, tmp_path):
    with pytest.raises(SettingsError) as raised:
        run(job(tiny_data, tmp_path, model=Component(name="training_toys:Broken")))
    text = str(raised.value)
    assert "train: the loss became nan in step 1 of 10 of epoch 1: training diverges" in text
    assert "Lower train.fit.lr (0.1), raise train.fit.warmup (0.2), or set train.fit.amp to off (bf16)" in text
    assert not (tmp_path / "scratch").exists()


def test_progress_tells_how_far_and_how_fast(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_PROGRESS", str(tmp_path / "progress.jsonl"))
    monkeypatch.setattr(loop, "_REPORT_SECONDS", 0.0)
    run(job(tiny_data, tmp_path, part=(1, 2)))
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [event["done"] for event in events] == [40, 40, 50, 50, 60, 60] and events[0]["total"] == 60
    assert set(events[0]["metrics"]) == {"epoch", "lr", "loss", "images_per_second"}
    assert set(events[1]["metrics"]) == {"epoch", "lr", "train_loss", "validation_loss", "validation_accuracy"}
