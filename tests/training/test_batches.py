import numpy as np
import pytest
import torch
from training_jobs import FIT, PLAIN

from pipeline.data.manifest import load_manifest
from pipeline.data.split import open_split
from pipeline.errors import SettingsError
from pipeline.settings.training import Fit
from pipeline.training.batches import Batches, check_batch, my_batches
from pipeline.training.distributed import ranks
from pipeline.training.fit import new_spec


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


def test_a_batch_that_the_data_cannot_fill_or_processes_cannot_share_is_refused():
    with pytest.raises(SettingsError, match=r"train\.fit\.batch_size is 64, but there are 50 training images"):
        check_batch("train.fit", Fit(batch_size=64), 50, 1)
    with pytest.raises(SettingsError, match="which 3 processes cannot share evenly: choose a multiple of 3"):
        check_batch("train.fit", Fit(batch_size=64), 500, 3)


def seen(data, monkeypatch, world, epoch):
    """Row -> the view of it that `epoch` shows to any of `world` processes."""
    fit = FIT.model_copy(update={"crop_padding": 2, "horizontal_flip": True, "random_erasing": 0.5})
    batches = Batches(open_split(data, "train"), new_spec(PLAIN, load_manifest(data)), fit, 3, torch.device("cpu"))
    monkeypatch.setattr(ranks, "world", lambda: world)
    views = {}
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        for batch in batches.epoch(epoch):
            views |= dict(zip(batch.rows.tolist(), batch.view, strict=True))
    return views


@pytest.mark.parametrize("world", [2, 4])
def test_the_same_views_are_seen_whatever_the_number_of_processes(tiny_data, monkeypatch, world):
    alone, together = (seen(tiny_data, monkeypatch, count, epoch=1) for count in (1, world))
    assert len(alone) == 320 and alone.keys() == together.keys()
    assert all(torch.equal(view, together[row]) for row, view in alone.items())
    others = seen(tiny_data, monkeypatch, 1, epoch=2)
    assert not all(torch.equal(view, others[row]) for row, view in alone.items() if row in others)
