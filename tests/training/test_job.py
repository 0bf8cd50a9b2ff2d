import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.compression.quantization import fake_quant
from pipeline.compression.quantization.fake_quant import FakeQuant, Grid, Levels
from pipeline.data.shards import load_manifest, open_split
from pipeline.errors import SettingsError
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.settings.training import Fit
from pipeline.training import job as training
from pipeline.training.distributed import ranks
from pipeline.training.fit import new_spec
from pipeline.training.job import TrainingJob, evaluate, follow_, learning_rate, make_optimizer, my_batches

RESNET = Component(name="resnet", width=4, blocks=[1, 1])
PLAIN = Component(name="training_toys:Plain")
FIT = Fit(epochs=3, batch_size=32, lr=0.1, crop_padding=1, horizontal_flip=False)


def job(data, where, fit=FIT, model=RESNET, **more):
    spec = new_spec(model, load_manifest(data))
    return TrainingJob(
        section="train.fit", what="train", spec=spec, fit=fit, data=data, seed=3,
        scratch=where / "scratch", out=where / "out", **more,
    )  # fmt: skip


def run(the_job):
    training.run(the_job.model_dump(mode="json"))
    return the_job.out


def history(out):
    return json.loads((out / "history.json").read_text())


def curves(out):
    """The history without what a clock wrote."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history(out)]


def weights(out):
    return checkpoint.load(out)[1].state_dict()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_together_the_processes_see_every_image_of_an_epoch_once(monkeypatch, world):
    monkeypatch.setattr(ranks, "world", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(my_batches(103, 8, epoch=2, seed=1))
    assert {share.shape for share in shares} == {(12, 8 // world)}
    seen = np.concatenate([share.reshape(-1) for share in shares])
    assert len(set(seen.tolist())) == 96 and seen.min() >= 0 and seen.max() < 103


def test_the_batches_of_a_step_do_not_depend_on_the_number_of_processes(monkeypatch):
    alone = my_batches(64, 8, epoch=0, seed=1)
    monkeypatch.setattr(ranks, "world", lambda: 2)
    both = []
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        both.append(my_batches(64, 8, epoch=0, seed=1))
    np.testing.assert_array_equal(np.concatenate(both, axis=1), alone)


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = [my_batches(64, 64, epoch, seed)[0] for epoch, seed in ((0, 1), (1, 1), (0, 2))]
    assert len({tuple(order.tolist()) for order in orders}) == 3
    np.testing.assert_array_equal(my_batches(64, 64, 1, 1)[0], orders[1])


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_learning_rate_rises_to_lr_and_then_follows_the_schedule(schedule):
    fit = Fit(lr=0.4, warmup=0.25, schedule=schedule)
    rates = [learning_rate(fit, step, 1000) for step in range(1001)]
    assert all(a < b for a, b in itertools.pairwise(rates[:251])) and 0 < rates[0] < 0.002
    assert rates[250] == max(rates) == pytest.approx(0.4)
    middle = {"cosine": 0.2, "onecycle": 0.2, "constant": 0.4}[schedule]
    quarter = {"cosine": 0.2 * (1 + math.cos(math.pi / 4)), "onecycle": 0.3, "constant": 0.4}[schedule]
    assert rates[625] == pytest.approx(middle)
    assert rates[437] == pytest.approx(quarter, rel=2e-3)
    assert rates[1000] == pytest.approx(0.4 if schedule == "constant" else 0.0)


def test_learning_rate_without_warmup_begins_at_lr():
    assert learning_rate(Fit(lr=0.1, warmup=0.0), 0, 10) == 0.1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_biases_and_batch_norms(name):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, spared = make_optimizer(network, Fit(optimizer=name, weight_decay=0.01)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3)] and decayed["weight_decay"] == 0.01
    assert len(spared["params"]) == 3 and spared["weight_decay"] == 0.0


def test_the_average_follows_by_one_minus_decay():
    network, average = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        network.num_batches_tracked.fill_(7)
    follow_(average, network, 0.75)
    assert average.weight.tolist() == [1.0, 1.25, 1.5]
    assert average.num_batches_tracked == 7


def test_evaluate_counts_every_image_of_the_split(tiny_data):
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    network, split = checkpoint.build(spec), open_split(tiny_data, "validation")
    logits = checkpoint.WithPreprocessing(spec, network)(torch.tensor(split.images()))
    labels = torch.from_numpy(split.labels)
    accuracy, loss = evaluate(network, spec, split)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert network.training


def test_a_training_learns_and_leaves_a_checkpoint_and_a_history(tiny_data, tmp_path):
    out = run(job(tiny_data, tmp_path))
    assert {path.name for path in out.iterdir()} == {"model.json", "model.safetensors", "history.json"}
    spec, network = checkpoint.load(out)
    assert spec.labels == ("nw", "ne", "sw", "se") and spec.preprocessing.mean == load_manifest(tiny_data).mean
    assert [row["epoch"] for row in history(out)] == [1, 2, 3]
    assert history(out)[-1]["train_loss"] < history(out)[0]["train_loss"]
    assert evaluate(network, spec, open_split(tiny_data, "validation"))[0] > 0.9


def test_the_best_epoch_on_validation_is_kept(tiny_data, tmp_path, monkeypatch):
    told = iter([(0.5, 1.0), (0.9, 1.0), (0.7, 1.0)])
    after: list[torch.Tensor] = []

    def judge(network, spec, split):
        after.append(network.head.weight.detach().clone())
        return next(told)

    monkeypatch.setattr(training, "evaluate", judge)
    out = run(job(tiny_data, tmp_path))
    assert torch.equal(weights(out)["head.weight"], after[1]) and not torch.equal(after[1], after[2])


def test_the_same_seed_gives_the_same_weights(tiny_data, tmp_path):
    one, two = (weights(run(job(tiny_data, tmp_path / name))) for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)


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
    step = training._Training._step

    def stop_in_the_third_epoch(self, rows, number, generator):
        if self.epoch == 2 and number % self.steps == 4:
            raise Killed
        return step(self, rows, number, generator)

    with monkeypatch.context() as patched:
        patched.setattr(training._Training, "_step", stop_in_the_third_epoch)
        with pytest.raises(Killed):
            run(broken)
    begun = []
    seed_epoch = training._Training._seed_epoch
    monkeypatch.setattr(
        training._Training, "_seed_epoch", lambda self: (begun.append(self.epoch), seed_epoch(self))[1]
    )  # fmt: skip
    resumed = run(broken)
    assert begun == [2]
    assert curves(resumed) == curves(whole)
    before, after = weights(whole), weights(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_finished_training_that_is_run_again_trains_no_more(tiny_data, tmp_path, monkeypatch):
    the_job = job(tiny_data, tmp_path)
    before = weights(run(the_job))
    monkeypatch.setattr(training._Training, "run_epoch", lambda self: pytest.fail("it trained"))
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


def test_where_bf16_would_be_slow_training_is_in_float32_and_says_so(tiny_data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    fit = FIT.model_copy(update={"epochs": 1})
    fallen_back = weights(run(job(tiny_data, tmp_path / "a", fit)))
    assert "train.fit.amp is bf16, which cpu has no instructions for: training in float32" in caplog.text
    off = weights(run(job(tiny_data, tmp_path / "b", fit.model_copy(update={"amp": "off"}))))
    assert all(torch.equal(off[name], fallen_back[name]) for name in off)


def test_a_batch_that_the_data_cannot_fill_or_processes_cannot_share_is_refused():
    with pytest.raises(SettingsError, match=r"train\.fit\.batch_size is 64, but there are 50 training images"):
        training.check_batch("train.fit", Fit(batch_size=64), 50, 1)
    with pytest.raises(SettingsError, match="which 3 processes cannot share evenly: choose a multiple of 3"):
        training.check_batch("train.fit", Fit(batch_size=64), 500, 3)


def test_teacher_and_student_see_the_same_view(tiny_data, tmp_path):
    """A student that equals its teacher loses nothing against it on augmented views, and so never changes."""
    manifest = load_manifest(tiny_data)
    spec = new_spec(PLAIN, manifest)
    checkpoint.save(tmp_path / "teacher", spec, checkpoint.build(spec))
    fit = FIT.model_copy(
        update={"random_erasing": 1.0, "horizontal_flip": True, "epochs": 1, "weight_decay": 0.0, "amp": "off"}
    )
    loss = Component(name="kd", temperature=2.0, alpha=1.0)
    out = run(job(tiny_data, tmp_path, fit, PLAIN, start=tmp_path / "teacher", teacher=tmp_path / "teacher", loss=loss))
    assert history(out)[0]["train_loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("padding", "asked"), [(0, 11), (1, 30)])
def test_a_teacher_is_asked_once_about_views_that_never_change(tiny_data, tmp_path, monkeypatch, padding, asked):
    """And the student learns as if the teacher answered each batch anew."""
    monkeypatch.setattr(training, "_EVALUATION_BATCH", 32)  # 330 images: 11 batches, or 3 epochs of 10 whole ones
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    checkpoint.save(tmp_path / "teacher", spec, checkpoint.build(spec))
    fit = FIT.model_copy(update={"crop_padding": padding, "amp": "off"})
    more = {"teacher": tmp_path / "teacher", "loss": Component(name="kd", alpha=1.0)}
    teach, views = training._Training._teach, []
    monkeypatch.setattr(training._Training, "_teach", lambda self, view: views.append(view) or teach(self, view))
    once = weights(run(job(tiny_data, tmp_path / "once", fit, **more)))
    assert len(views) == asked
    again = weights(run(job(tiny_data, tmp_path / "again", fit, **more)))
    assert len(views) == asked + (30 if padding else 0), "the answers are kept for the next training"
    assert all(torch.equal(weight, again[name]) for name, weight in once.items())
    views.clear()
    monkeypatch.setattr(training, "_REMEMBERED_BYTES", 0)
    each_time = weights(run(job(tiny_data, tmp_path / "each", fit, **more)))
    assert len(views) == 30
    for name, weight in once.items():
        torch.testing.assert_close(weight, each_time[name], rtol=1e-3, atol=1e-4)


def test_progress_tells_how_far_and_how_fast(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_PROGRESS", str(tmp_path / "progress.jsonl"))
    monkeypatch.setattr(training, "_REPORT_SECONDS", 0.0)
    run(job(tiny_data, tmp_path, part=(1, 2)))
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [event["done"] for event in events] == [40, 40, 50, 50, 60, 60] and events[0]["total"] == 60
    assert set(events[0]["metrics"]) == {"epoch", "lr", "loss", "images_per_second"}
    assert set(events[1]["metrics"]) == {"epoch", "lr", "train_loss", "validation_loss", "validation_accuracy"}


ROUNDED = FakeQuant(
    grids=(Grid(tensors=("relu",), nodes=("relu",), scale=0.02, zero_point=0, low=0, high=255, learned=True),),
    weights={"conv.weight": Levels(count=127, axis=0), "head.weight": Levels(count=127, axis=0)},
)


def rounded_job(data, where, fit=FIT):
    spec = new_spec(PLAIN, load_manifest(data))
    torch.manual_seed(1)
    checkpoint.save(where / "start", spec, checkpoint.build(spec))
    return job(data, where, fit, PLAIN, start=where / "start", fake_quant=ROUNDED)


def test_a_training_that_rounds_leaves_a_plain_checkpoint_judged_as_quantized(tiny_data, tmp_path):
    out = run(rounded_job(tiny_data, tmp_path))
    assert {path.name for path in out.iterdir()} == {"model.json", "model.safetensors", "history.json", "ranges.json"}
    spec, network = checkpoint.load(out)
    assert set(weights(out)) == {"conv.weight", "conv.bias", "head.weight", "head.bias"}
    assert not torch.equal(weights(out)["conv.weight"], weights(tmp_path / "start")["conv.weight"])
    low, high = json.loads((out / "ranges.json").read_text())["relu"]
    assert low == 0.0 and high != pytest.approx(0.02 * 255, rel=1e-6), "the step is learned"
    grid = ROUNDED.grids[0].model_copy(update={"scale": high / 255})
    simulated = fake_quant.simulate(spec, network, ROUNDED.model_copy(update={"grids": (grid,)}))
    accuracy, _ = evaluate(simulated, spec, open_split(tiny_data, "validation"))
    assert accuracy == max(row["validation_accuracy"] for row in history(out))


def test_a_resumed_training_that_rounds_ends_like_one_that_was_never_stopped(tiny_data, tmp_path):
    fit = FIT.model_copy(update={"epochs": 2, "ema_decay": 0.9})
    whole = run(rounded_job(tiny_data, tmp_path / "whole", fit))
    broken = rounded_job(tiny_data, tmp_path / "broken", fit)
    training._Training(broken).run_epoch()
    resumed = run(broken)
    assert curves(resumed) == curves(whole)
    assert (resumed / "ranges.json").read_text() == (whole / "ranges.json").read_text()
    before, after = weights(whole), weights(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
