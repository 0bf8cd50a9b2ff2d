import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.data.views import augment
from pipeline.data.views.row_generator import RowGenerator


def generator(count=40, seed=0, epoch=0):
    return RowGenerator(seed, epoch, np.arange(count))


def images(count=40, channels=3, height=6, width=5):
    return torch.randint(
        1, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def test_every_view_is_the_image_shifted_with_black_coming_in():
    original = images()
    views = augment.crop_and_flip(original, 2, False, generator())
    padded = F.pad(original, (2, 2, 2, 2))
    shifts = set()
    for image, view in zip(padded, views, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + 6, x : x + 5], view)]
        assert len(found) == 1
        shifts |= set(found)
    assert views.shape == original.shape and views.dtype == torch.uint8 and len(shifts) > 12


def test_half_of_the_images_are_mirrored():
    original = images(400)
    views = augment.crop_and_flip(original, 0, True, generator(400))
    mirrored = torch.tensor([torch.equal(view, image.flip(2)) for view, image in zip(views, original, strict=True)])
    same = torch.tensor([torch.equal(view, image) for view, image in zip(views, original, strict=True)])
    assert bool((mirrored ^ same).all()) and 160 < int(mirrored.sum()) < 240


def test_views_follow_from_the_seed():
    first, again, other = (augment.crop_and_flip(images(), 2, True, generator(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_each_epoch_has_views_of_its_own():
    first, second = (augment.crop_and_flip(images(), 2, True, generator(epoch=epoch)) for epoch in (0, 1))
    assert not torch.equal(first, second)


def view(rows, original):
    """The view of the images at `rows` as training makes it."""
    draws = RowGenerator(3, 5, rows)
    shifted = augment.crop_and_flip(original[rows], 2, True, draws)
    return augment.erase((shifted.float() / 255.0).contiguous(memory_format=torch.channels_last), 0.5, draws)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_row_looks_alike_whichever_process_sees_it_beside_whichever_others(processes):
    original = images(60)
    alone = torch.cat([view(np.array([row]), original) for row in range(60)])
    order = np.random.default_rng(processes).permutation(60)
    for share in np.split(order, processes):
        assert torch.equal(view(share, original), alone[share])


def test_nothing_asked_is_nothing_done():
    original = images()
    assert augment.crop_and_flip(original, 0, False, generator()) is original
    assert augment.erase(original, 0.0, generator()) is original


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_erasing_fills_one_rectangle_of_a_share_of_the_images(share):
    original = torch.zeros(300, 2, 20, 20)
    changed = (augment.erase(original, share, generator(300)) != 0).any(1)
    erased = changed.flatten(1).any(1)
    assert abs(float(erased.float().mean()) - share) < 0.1
    for mask in changed[erased]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert bool(box.all()) and box.numel() == int(mask.sum()) <= 0.4 * 400


def test_erasing_fills_with_noise_and_all_places_and_shapes_occur():
    views = augment.erase(torch.zeros(4000, 1, 12, 12), 1.0, generator(4000))[:, 0]
    noise = views[views != 0]
    assert abs(float(noise.mean())) < 0.01 and float(noise.std()) == pytest.approx(1.0, abs=0.01)
    area = (views != 0).flatten(1).sum(1) / 144
    assert float(area.mean()) == pytest.approx((0.02 + 0.33) / 2, abs=0.01), "even between 2 and 33 %"
    covered = (views != 0).float().mean(0)
    assert (
        float((covered - covered.flip(0)).abs().max()) < 0.04 and float((covered - covered.flip(1)).abs().max()) < 0.04
    )
    assert float(covered.min()) > 0.01


def test_shifts_are_even_both_ways_and_do_not_depend_on_the_mirror():
    dot = torch.zeros(9000, 1, 7, 7, dtype=torch.uint8)
    dot[:, :, 3, 2] = 1  # mirrored, it begins at column 4
    views = augment.crop_and_flip(dot, 1, True, generator(9000))
    row, column = views[:, 0].flatten(1).argmax(1).div(7, rounding_mode="floor"), views[:, 0].flatten(1).argmax(1) % 7
    counts = torch.zeros(7, 7).index_put_((row, column), torch.ones(9000), accumulate=True)[2:5, 1:6]
    expected = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]).expand(3, 5) * 9000 / 18
    assert float((counts - expected).abs().max()) < 5 * 1000**0.5
