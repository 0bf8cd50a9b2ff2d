import pytest
import torch
from torch.nn import functional as F

from pipeline.data.views import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=40, channels=3, height=6, width=5):
    return torch.randint(1, 256, (count, channels, height, width), generator=generator(1), dtype=torch.uint8)


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
    views = augment.crop_and_flip(original, 0, True, generator())
    mirrored = torch.tensor([torch.equal(view, image.flip(2)) for view, image in zip(views, original, strict=True)])
    same = torch.tensor([torch.equal(view, image) for view, image in zip(views, original, strict=True)])
    assert bool((mirrored ^ same).all()) and 160 < int(mirrored.sum()) < 240


def test_views_follow_from_the_seed():
    first, again, other = (augment.crop_and_flip(images(), 2, True, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_nothing_asked_is_nothing_done():
    original = images()
    assert augment.crop_and_flip(original, 0, False, generator()) is original
    assert augment.erase(original, 0.0, generator()) is original


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_erasing_fills_one_rectangle_of_a_share_of_the_images(share):
    original = torch.zeros(300, 2, 20, 20)
    changed = (augment.erase(original, share, generator()) != 0).any(1)
    erased = changed.flatten(1).any(1)
    assert abs(float(erased.float().mean()) - share) < 0.1
    for mask in changed[erased]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert bool(box.all()) and box.numel() == int(mask.sum()) <= 0.4 * 400
