"""validate: hold the prepared data to its expectations with Great Expectations, and show what was found.

The data is summed up in small tables (`pipeline.data.facts`): its shards, the images of each split, its classes. Each
table is a data asset with a suite of expectations, one checkpoint runs them all, and the Data Docs say which hold.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from great_expectations.core import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.data import facts
from pipeline.data.shards import Manifest, load_manifest
from pipeline.errors import DataError
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.settings.data import Expectations

EXAMPLES = 3


def validate(config: Expectations, *, data: Path, out: Path) -> Metrics:
    """Leave validation.json, data_docs/ and plots/ in `out`.

    Raises `DataError` naming each expectation that does not hold, what was observed and examples.
    """
    manifest = load_manifest(data)
    report("validate", done=0, total=3)
    shards, splits = facts.read(data, manifest)
    classes, means = facts.class_table(splits, manifest)
    tables = {"shards": shards, **facts.image_tables(splits), "classes": classes}
    suites = {
        "shards": _shard_expectations(manifest),
        **{split: _image_expectations(config, manifest, split) for split in splits},
        "classes": _class_expectations(config),
    }
    report("validate", done=1, total=3)
    results = _run_checkpoint(tables, suites, out / "data_docs")
    report("validate", done=2, total=3)
    _plot(manifest, classes, means, out / "plots")
    failures = [
        f"{asset}: {_sentence(result, tables[asset])}"
        for asset, found in results.items()
        for result in found
        if not result.success
    ]
    total = sum(len(found) for found in results.values())
    metrics = {"expectations": float(total), "failed_expectations": float(len(failures)), **_measures(tables)}
    summary = {"data": str(data), "success": not failures, "failures": failures, "metrics": metrics}
    (out / "validation.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report("validate", done=3, total=3)
    if failures:
        raise DataError(
            "\n".join(
                [
                    f"{len(failures)} of {total} expectations do not hold for {data}:",
                    *(f"  - {failure}" for failure in failures),
                    "Mend the data (see data_docs/index.html of this run); where the data is right, the limits are under "
                    "'expectations' in params.yaml.",
                ]
            )
        )
    return metrics


def _shard_expectations(manifest: Manifest) -> list[gxe.Expectation]:
    types = {name: str(kind) for name, kind in manifest.shard_types.items()}
    return [
        gxe.ExpectColumnValuesToBeNull(column="file_is", description="every file is in the manifest and can be read"),
        gxe.ExpectColumnValuesToBeInSet(
            column="columns", value_set=[", ".join(types)], description=f"the columns are {', '.join(types)}"
        ),
        *(
            gxe.ExpectColumnValuesToBeInSet(
                column=f"{name}_type", value_set=[kind], description=f"column {name} is {kind}"
            )
            for name, kind in types.items()
        ),
        *(
            gxe.ExpectColumnPairValuesToBeEqual(
                column_A=fact,
                column_B=f"manifest_{fact}",
                ignore_row_if="either_value_is_missing",
                description=f"{fact} as in the manifest",
            )
            for fact in ("rows", "sha256")
        ),
    ]


def _image_expectations(config: Expectations, manifest: Manifest, split: str) -> list[gxe.Expectation]:
    labels, size, count = len(manifest.labels), int(np.prod(manifest.image_shape)), manifest.counts[split]
    expectations: list[gxe.Expectation] = [
        gxe.ExpectTableRowCountToEqual(value=count, description=f"{count} images, as in the manifest"),
        gxe.ExpectTableRowCountToBeBetween(
            min_value=config.min_images, description=f"at least expectations.min_images = {config.min_images} images"
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="label", description="every image has a label"),
        gxe.ExpectColumnValuesToBeInSet(
            column="label", value_set=list(range(labels)), description=f"every label is one of 0 to {labels - 1}"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="pixels",
            value_set=[size],
            description=f"every image has {' x '.join(map(str, manifest.image_shape))} = {size} pixels",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="missing_pixels", value_set=[0], description="no pixel is missing (null or NaN)"
        ),
        gxe.ExpectColumnValuesToBeBetween(column="pixel_min", min_value=0, description="no pixel is below 0"),
        gxe.ExpectColumnValuesToBeBetween(column="pixel_max", max_value=255, description="no pixel is above 255"),
        gxe.ExpectColumnValuesToBeNull(
            column="duplicate_of",
            mostly=1 - config.max_duplicate_share,
            description="no image occurs twice, but for a share of expectations.max_duplicate_share = "
            f"{config.max_duplicate_share}",
        ),
    ]
    if split != list(manifest.counts)[-1]:
        expectations.append(
            gxe.ExpectColumnValuesToBeNull(
                column="also_in",
                mostly=max(0.0, (count - config.max_leaked_images) / count),
                description="no image is in another split too, but for expectations.max_leaked_images = "
                f"{config.max_leaked_images}",
            )
        )
    return expectations


def _class_expectations(config: Expectations) -> list[gxe.Expectation]:
    return [
        gxe.ExpectColumnValuesToBeBetween(column="images", min_value=1, description="every class has images"),
        gxe.ExpectColumnValuesToBeBetween(
            column="times_fewer",
            max_value=config.max_class_imbalance,
            description="the most frequent class has at most expectations.max_class_imbalance = "
            f"{config.max_class_imbalance} times the images of any other",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="drift",
            max_value=config.max_pixel_drift,
            description="the mean image of each class is at most expectations.max_pixel_drift = "
            f"{config.max_pixel_drift} standard deviations from the recorded baseline",
        ),
    ]


def _run_checkpoint(
    tables: dict[str, pa.Table], suites: dict[str, list[gxe.Expectation]], docs: Path
) -> dict[str, list[ExpectationValidationResult]]:
    """Return the results of each table's suite; leave the Data Docs in `docs`."""
    with tempfile.TemporaryDirectory() as directory:
        context = gx.get_context(mode="file", project_root_dir=directory)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_pandas("data")
        definitions = []
        for name, table in tables.items():
            path = Path(directory) / f"{name}.parquet"
            pq.write_table(table, path)
            batch = source.add_parquet_asset(name, path=path).add_batch_definition("all")
            suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=suites[name]))
            definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
            definitions.append(context.validation_definitions.add(definition))
        checkpoint = gx.Checkpoint(
            name="validate",
            validation_definitions=definitions,
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
        )
        result = context.checkpoints.add(checkpoint).run(run_id=gx.RunIdentifier(run_name="validate"))
        context.build_data_docs()
        site = Path(context.root_directory) / "uncommitted" / "data_docs" / "local_site"
        _make_private(site)
        shutil.copytree(site, docs)
    return {found.suite_name: found.results for found in result.run_results.values()}


def _make_private(site: Path) -> None:
    """Take out of the Data Docs what a reader's browser would send to their maker, and pictures that no page shows."""
    for page in site.rglob("*.html"):
        text = re.sub(r"https://great-expectations-web-assets[^\"']*", "data:,", page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
    for picture in (site / "static" / "images").glob("*.gif"):
        picture.unlink()


def _sentence(result: ExpectationValidationResult, table: pa.Table) -> str:
    """What must hold, what was observed instead, and where."""
    config, found = result.expectation_config, result.result
    assert config is not None
    if result.exception_info.get("raised_exception"):
        raise RuntimeError(f"{config.type} could not be evaluated: {result.exception_info['exception_message']}")
    if "unexpected_count" not in found:
        return f"{config.description}; observed: {found['observed_value']}"
    columns = [config.kwargs[key] for key in ("column", "column_A", "column_B") if key in config.kwargs]
    rows = table.take(found["partial_unexpected_index_list"][:EXAMPLES]).to_pylist()
    examples = [f"{row['where']}: {_facts(row, columns)}" for row in rows]
    share = f"{found['unexpected_count']} of {found['element_count']}"
    return f"{config.description}; observed: not so for {share}, e.g. {'; '.join(examples)}"


def _facts(row: dict[str, Any], columns: list[str]) -> str:
    values = [f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in columns]
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in zip(columns, values, strict=True))


def _measures(tables: dict[str, pa.Table]) -> dict[str, float]:
    images = {name: table for name, table in tables.items() if name not in {"shards", "classes"}}
    drifts = [drift for drift in tables["classes"]["drift"].to_pylist() if drift is not None]
    return {
        **{f"{split}_images": float(table.num_rows) for split, table in images.items()},
        "duplicate_images": float(sum(len(t) - t["duplicate_of"].null_count for t in images.values())),
        "leaked_images": float(sum(len(t) - t["also_in"].null_count for t in images.values())),
        "class_imbalance": max(tables["classes"]["times_fewer"].to_pylist()),
        "pixel_drift": max(drifts, default=0.0),
    }


def _plot(manifest: Manifest, classes: pa.Table, means: dict[str, NDArray[np.float64]], plots: Path) -> None:
    """Draw how many images each class has, and the mean image of each class, for every split."""
    plots.mkdir()
    splits, labels = list(manifest.counts), manifest.labels
    counts = np.array(classes["images"].to_pylist()).reshape(len(splits), len(labels))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for number, split in enumerate(splits):
        axes.bar(np.arange(len(labels)) + 0.27 * (number - 1), counts[number], 0.25, label=split)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set(ylabel="images", title=f"{manifest.name}: images of each class")
    figure.legend(loc="outside right upper")
    figure.savefig(plots / "class_counts.png", dpi=100)

    _, height, width = manifest.image_shape
    rows = [np.hstack([mean.reshape(manifest.image_shape).mean(axis=0) for mean in means[split]]) for split in splits]
    figure = Figure(figsize=(len(labels), len(splits) * height / width + 1), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.vstack(rows), cmap="gray", vmin=0, vmax=255)
    axes.set_xticks((np.arange(len(labels)) + 0.5) * width - 0.5, labels, rotation=30, ha="right")
    axes.set_yticks((np.arange(len(splits)) + 0.5) * height - 0.5, splits)
    axes.set_title(f"{manifest.name}: mean image of each class")
    figure.savefig(plots / "mean_images.png", dpi=100)
