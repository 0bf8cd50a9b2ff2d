"""validate: hold the prepared data to its expectations with Great Expectations, and show what was found.

The data is summed up in small tables (`pipeline.data.facts`): its shards, the images of each split, its classes. Each
table is a data asset with a suite of expectations, one checkpoint runs them all, and the Data Docs say which hold.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.data import expectations, facts, plots
from pipeline.data.data_docs import run_checkpoint, sentence
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.progress.events import report
from pipeline.protocols import Metrics
from pipeline.settings.data import Expectations


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
        "shards": expectations.shard_expectations(manifest),
        **{split: expectations.image_expectations(config, manifest, split) for split in splits},
        "classes": expectations.class_expectations(config),
    }
    report("validate", done=1, total=3)
    results = run_checkpoint(tables, suites, out / "data_docs")
    report("validate", done=2, total=3)
    plots.draw(manifest, classes, means, out / "plots")
    failures = [
        f"{asset}: {sentence(result, tables[asset])}"
        for asset, found in results.items()
        for result in found
        if not result.success
    ]
    total = sum(len(found) for found in results.values())
    metrics = {"expectations": float(total), "failed_expectations": float(len(failures)), **_measures(tables)}
    summary = {"data": str(data), "success": not failures, "failures": failures, "metrics": metrics}
    write_json(out / "validation.json", summary)
    report("validate", done=3, total=3)
    if failures:
        raise DataError(
            "\n".join(
                [
                    f"{len(failures)} of {total} expectations do not hold for {data}:",
                    *(f"  - {failure}" for failure in failures),
                    "Repair the data (see data_docs/index.html of this run); where the data is right, the limits are under "
                    "'expectations' in params.yaml.",
                ]
            )
        )
    return metrics


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
