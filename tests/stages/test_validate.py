"""validate on digits: as they are, and with every damage at once. Great Expectations takes seconds, so it runs twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.datasets.digits import Digits
from pipeline.data.divide import divide
from pipeline.data.facts import Pixels, class_table, image_tables, read
from pipeline.data.manifest import load_manifest
from pipeline.data.shards import read_shard, write
from pipeline.data.split import open_split
from pipeline.errors import DataError
from pipeline.machine import workspace
from pipeline.settings.data import Expectations

pytestmark = pytest.mark.integration  # the whole stage, with Great Expectations

LIMITS = Expectations(min_images=50)


def validate(settings: Expectations, directory: Path, out: Path) -> dict[str, float]:
    from pipeline.stages.validate import validate as stage

    out.mkdir()
    return dict(stage(settings, data=directory, out=out))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared digits: train has 5 shards of 256 images, validation 1, test 2."""
    directory = tmp_path_factory.mktemp("digits")
    (directory / "raw").mkdir()
    dataset = Digits()
    dataset.fetch(directory / "raw")
    splits, dropped = divide(dataset.read(directory / "raw"), 180, seed=17)
    write(
        directory / "good", name="digits", labels=dataset.labels, splits=splits, dropped=dropped, shard_bytes=256 * 64
    )
    return directory / "good"


def rewrite(path: Path, change: Callable[[np.ndarray, np.ndarray], tuple[pa.Array, pa.Array]]) -> None:
    """Write the shard again as `change` of its images (rows, pixels) and labels (rows,)."""
    batch = read_shard(path)
    images = batch["image"].values.to_numpy().reshape(batch.num_rows, -1).copy()
    image, label = change(images, batch["label"].to_numpy().copy())
    new = pa.record_batch({"image": image, "label": label})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, new.schema) as writer:
        writer.write_batch(new)


def pixels(images: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images.shape[1])


@pytest.fixture(scope="module")
def failures(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What validate says of a copy of digits with every kind of damage."""
    directory = tmp_path_factory.mktemp("damaged")
    bad = directory / "digits"
    shutil.copytree(digits, bad)
    test = open_split(digits, "test")

    def label_11_and_a_test_image(images: np.ndarray, labels: np.ndarray) -> tuple[pa.Array, pa.Array]:
        labels[17] = 11
        images[5], labels[5] = test.slice(9, 10).reshape(-1), test.labels[9]
        return pixels(images), pa.array(labels)

    def nan(images: np.ndarray, labels: np.ndarray) -> tuple[pa.Array, pa.Array]:
        images = images.astype(np.float32)
        images[3, 30] = np.nan
        return pixels(images), pa.array(labels)

    def swapped(images: np.ndarray, labels: np.ndarray) -> tuple[pa.Array, pa.Array]:
        return pixels(images), pa.array(np.select([labels == 3, labels == 4], [4, 3], labels).astype(np.int32))

    def copies_nulls_and_a_rare_class(images: np.ndarray, labels: np.ndarray) -> tuple[pa.Array, pa.Array]:
        images[11] = images[10]
        fourth_six_on = (labels == 6) & (np.cumsum(labels == 6) > 3)
        return pixels(images), pa.array(np.where(fourth_six_on, 5, labels), pa.int32(), mask=np.arange(180) == 2)

    (bad / "test" / "notes.txt").touch()
    rewrite(bad / "validation/part-00000.arrow", copies_nulls_and_a_rare_class)
    rewrite(bad / "train/part-00000.arrow", label_11_and_a_test_image)
    rewrite(bad / "train/part-00001.arrow", nan)
    (bad / "train/part-00002.arrow").unlink()
    truncated = bad / "train/part-00003.arrow"
    truncated.write_bytes(truncated.read_bytes()[:9000])
    rewrite(bad / "test/part-00000.arrow", swapped)
    with pytest.raises(DataError) as caught:
        validate(Expectations(min_images=200), bad, directory / "out")
    summary = json.loads((directory / "out" / "validation.json").read_text())
    assert not summary["success"]
    assert all(f"  - {failure}" in str(caught.value) for failure in summary["failures"])
    assert (directory / "out" / "data_docs" / "index.html").is_file()
    return str(caught.value)


NAMED = {
    "label 11": "train: every label is one of 0 to 9; observed: not so for 1 of 745, "
    "e.g. train/part-00000.arrow row 17 (label 11): label 11",
    "leak": "train: no image is in another split too, except for expectations.max_leaked_images = 0; observed: not so for 1 of 745, "
    "e.g. train/part-00000.arrow row 5 (label 3): also in test/part-00000.arrow row 9 (label 4)",
    "NaN": "train: no pixel is missing (null or NaN); observed: not so for 1 of 745, e.g. train/part-00001.arrow row 3 (label ",
    "floats": "train/part-00001.arrow: image type fixed_size_list<item: float>[64]",
    "missing shard": "train/part-00002.arrow: file is missing",
    "truncated file": "train/part-00003.arrow: file is truncated or no Arrow file",
    "row count": "train: 1257 images, as in the manifest; observed: 745",
    "changed bytes": "shards: sha256 as in the manifest; observed: not so for 4 of 9, e.g. test/part-00000.arrow: sha256 ",
    "swapped classes": "classes: the mean image of each class is at most expectations.max_pixel_drift = 0.25 standard deviations from "
    "the recorded baseline; observed: not so for ",
    "unlisted file": "test/notes.txt: file is not in the manifest",
    "few images": "validation: at least expectations.min_images = 200 images; observed: 180",
    "no label": "validation: every image has a label; observed: not so for 1 of 180, e.g. validation/part-00000.arrow row 2 (no label)",
    "duplicate": "duplicate of validation/part-00000.arrow row 10",
    "imbalance": "at most expectations.max_class_imbalance = 2.0 times the images of any other; observed: not so for 1 of 30, "
    "e.g. validation/6: times fewer ",
}


@pytest.mark.parametrize("damage", NAMED)
def test_every_damage_is_named_with_what_was_observed_and_where(failures: str, damage: str) -> None:
    assert NAMED[damage] in failures


def test_failure_says_how_many_and_what_to_do(failures: str) -> None:
    assert failures.splitlines()[0].startswith("12 of 38 expectations do not hold for /")
    assert "data_docs/index.html" in failures.splitlines()[-1]
    assert "'expectations' in params.yaml" in failures.splitlines()[-1]


def test_good_data_passes_with_docs_and_plots(digits: Path, tmp_path: Path) -> None:
    metrics = validate(LIMITS, digits, tmp_path / "out")
    assert metrics["failed_expectations"] == metrics["leaked_images"] == metrics["duplicate_images"] == 0
    assert (metrics["train_images"], metrics["validation_images"], metrics["test_images"]) == (1257, 180, 360)
    assert json.loads((tmp_path / "out" / "validation.json").read_text())["success"]
    assert sorted(path.name for path in (tmp_path / "out" / "plots").iterdir()) == [
        "class_counts.png",
        "mean_images.png",
    ]
    pages = [path.read_text() for path in (tmp_path / "out" / "data_docs").rglob("*.html")]
    assert len(pages) == 1 + 5 + 5  # the index, the suites, the results
    assert any("every label is one of 0 to 9" in page for page in pages)
    assert not any("great-expectations-web-assets" in page for page in pages)  # a picture that counts readers


def test_no_manifest_stops_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no prepared data: manifest\.json cannot be read"):
        validate(LIMITS, tmp_path, tmp_path / "out")


def test_other_shapes_and_types_are_facts_and_no_crash(digits: Path, tmp_path: Path) -> None:
    bad = tmp_path / "digits"
    shutil.copytree(digits, bad)
    rewrite(bad / "train/part-00000.arrow", lambda x, y: (pixels(x[:, :49]), pa.array(y)))
    rewrite(bad / "train/part-00001.arrow", lambda x, y: (pa.array([row.tobytes() for row in x]), pa.array(y)))
    rewrite(bad / "train/part-00002.arrow", lambda x, y: (pixels(x), pa.array([str(label) for label in y])))
    manifest = load_manifest(bad)
    shards, splits = read(bad, manifest)
    facts = {row["where"]: (row["file_is"], row["image_type"], row["label_type"]) for row in shards.to_pylist()}
    assert facts["train/part-00000.arrow"] == (None, "fixed_size_list<item: uint8>[49]", "int32")
    assert facts["train/part-00001.arrow"] == (None, "binary", "int32")
    assert facts["train/part-00002.arrow"] == (None, "fixed_size_list<item: uint8>[64]", "string")
    images = image_tables(splits)["train"]
    assert images["pixels"].to_pylist().count(49) == 256
    assert images.num_rows == 1257 - 256
    assert images["label"].null_count == 256
    classes, _ = class_table(splits, manifest)
    assert sum(classes["images"].to_pylist()[:10]) == 1257 - 3 * 256


def test_drift_is_what_chance_cannot_explain(digits: Path) -> None:
    manifest = load_manifest(digits)
    _, splits = read(digits, manifest)
    classes, _ = class_table(splits, manifest)
    assert max(classes["drift"].to_pylist()) < LIMITS.max_pixel_drift
    shifted = {
        split: [Pixels(s.path, np.minimum(s.images.astype(np.float64) + 60, 255), s.labels) for s in shards]
        for split, shards in splits.items()
    }
    classes, _ = class_table(shifted, manifest)
    assert min(classes["drift"].to_pylist()) > LIMITS.max_pixel_drift


@pytest.mark.integration
@pytest.mark.parametrize("name", ["fashion_mnist"])  # digits are prepared here: the tests above
def test_the_real_data_passes(name: str, tmp_path: Path) -> None:
    directory = workspace.SOURCE / "data" / name
    if not directory.is_dir():
        pytest.skip(f"{directory} is not there: run `python -m dvc repro prepare@{name}`")
    assert validate(Expectations(), directory, tmp_path / "out")["failed_expectations"] == 0
