import json
import threading
import time

import psutil
import pytest
import torch
from training_toys import files

from pipeline.data.split import open_split
from pipeline.errors import DataError, SettingsError
from pipeline.models import checkpoint
from pipeline.settings.base import Component
from pipeline.settings.training import Distributed, Fit, Train
from pipeline.stages.train import train
from pipeline.training.validation import evaluate

CONFIG = Train(
    model=Component(name="resnet", width=4, blocks=[1, 1]),
    fit=Fit(epochs=6, batch_size=32, lr=0.1, crop_padding=1, horizontal_flip=False),
)


@pytest.mark.integration
@pytest.mark.extra
def test_train_under_torchrun_in_two_processes(tiny_data, tmp_path):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    metrics = train(CONFIG, data=tiny_data, distributed=Distributed(nproc=2), seed=1, out=out, scratch=scratch)
    assert files(out) == {"model.json", "model.safetensors", "history.json", "plots/learning_curves.png"}
    spec, network = checkpoint.load(out)
    assert metrics["parameters"] == sum(weight.numel() for weight in network.parameters())
    assert metrics["macs"] == 64 * 36 + 2 * 64 * 4 * 36 + 16 * 8 * (36 + 72 + 4) + 8 * 4
    assert metrics["validation_accuracy"] == evaluate(network, spec, open_split(tiny_data, "validation"))[0] > 0.8
    assert metrics["epochs"] == 6 and metrics["seconds"] > 0 and metrics["images_per_second"] > 0


def test_a_batch_that_the_processes_cannot_share_is_refused_before_any_starts(tiny_data, tmp_path):
    with pytest.raises(SettingsError, match=r"train\.fit\.batch_size is 32, which 5 processes cannot share evenly"):
        train(CONFIG, data=tiny_data, distributed=Distributed(nproc=5), seed=1, out=tmp_path, scratch=tmp_path)


def test_an_argument_that_the_model_lacks_is_named(tiny_data, tmp_path, here):
    config = CONFIG.model_copy(update={"model": Component(name="resnet", widht=4)})
    with pytest.raises(SettingsError, match=r"models\.resnet has no setting 'widht'.*did you mean 'width'"):
        train(config, data=tiny_data, distributed=Distributed(), seed=1, out=tmp_path, scratch=tmp_path)


def test_without_data_it_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match="holds no prepared data"):
        train(CONFIG, data=tmp_path, distributed=Distributed(), seed=1, out=tmp_path, scratch=tmp_path)


@pytest.mark.integration
@pytest.mark.extra
def test_a_training_whose_worker_is_killed_goes_on_from_its_last_checkpoint(tiny_data, tmp_path, monkeypatch):
    log, distributed = tmp_path / "progress.jsonl", Distributed(nproc=2)
    config = CONFIG.model_copy(update={"fit": CONFIG.fit.model_copy(update={"epochs": 12})})
    monkeypatch.setenv("FLYWEIGHT_PROGRESS", str(log))

    gone = []

    def kill_after_the_second_epoch():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if log.exists() and log.read_text().count("validation_accuracy") >= 2:
                workers = [
                    child
                    for child in psutil.Process().children()
                    if "pipeline.training.distributed.worker" in child.cmdline()
                ]
                workers[-1].kill()
                gone.extend(workers)
                return
            time.sleep(0.01)

    whole = tmp_path / "whole"
    train(config, data=tiny_data, distributed=distributed, seed=1, out=whole, scratch=tmp_path / "other")
    log.unlink()
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    arguments = {"data": tiny_data, "distributed": distributed, "seed": 1, "out": out, "scratch": scratch}
    killer = threading.Thread(target=kill_after_the_second_epoch)
    killer.start()
    with pytest.raises(RuntimeError, match=r"was ended by SIGKILL.*goes on from its last checkpoint"):
        train(config, **arguments)
    killer.join()
    assert len(gone) == 2 and not any(worker.is_running() for worker in gone)
    assert not out.exists()
    log.unlink()
    train(config, **arguments)
    events = [json.loads(line)["metrics"] for line in log.read_text().splitlines()]
    assert min(event["epoch"] for event in events if "epoch" in event) > 1
    assert [row["epoch"] for row in json.loads((out / "history.json").read_text())] == list(range(1, 13))
    before, after = checkpoint.load(whole)[1].state_dict(), checkpoint.load(out)[1].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
