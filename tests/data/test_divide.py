from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.divide import divide, stratified
from pipeline.errors import DataError


def some_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)


def test_every_class_gets_its_share() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = stratified(some_images(100), labels, 20, seed=17)
    assert np.bincount(labels[chosen]).tolist() == [12, 6, 2]


def test_shares_that_do_not_divide_still_add_up() -> None:
    labels = np.repeat([0, 1, 2], [33, 33, 34])
    chosen = stratified(some_images(100), labels, 10, seed=17)
    assert chosen.sum() == 10
    assert sorted(np.bincount(labels[chosen])) == [3, 3, 4]


def test_the_split_follows_pixels_and_seed_alone() -> None:
    images, labels = some_images(200), np.arange(200) % 4
    chosen = stratified(images, labels, 40, seed=17)
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(stratified(images[order], labels[order], 40, seed=17), chosen[order])
    assert (stratified(images, labels, 40, seed=18) != chosen).any()


def test_duplicates_go_and_are_counted() -> None:
    images, labels, test = some_images(20), np.arange(20) % 2, some_images(5, seed=1)
    images[3] = test[1]  # in test
    images[6] = images[4]  # an equal copy: the first stays
    images[9] = images[8]  # copies with labels 1 and 0: nobody knows which is right
    splits, dropped = divide({"train": (images, labels), "test": (test, np.zeros(5, int))}, 4, seed=17)
    assert dropped == {"in_test": 1, "conflicting_labels": 2, "duplicate": 1}
    kept = np.concatenate([splits["train"][0], splits["validation"][0]])
    expected = np.delete(images, [3, 6, 8, 9], axis=0)
    assert sorted(image.tobytes() for image in kept) == sorted(image.tobytes() for image in expected)
    assert len(splits["validation"][1]) == 4
    np.testing.assert_array_equal(splits["test"][0], test)


def test_no_image_is_left_to_train_on() -> None:
    data = {"train": (some_images(10), np.arange(10) % 2), "test": (some_images(3, seed=1), np.zeros(3, int))}
    with pytest.raises(
        DataError, match=r"validation_images is 10, but there are only 10 .* datasets.<name>.validation"
    ):
        divide(data, 10, seed=17)
