"""Tables held to their expectations in one checkpoint of Great Expectations, with its Data Docs and failures in words."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pyarrow as pa
import pyarrow.parquet as pq
from great_expectations.core import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig

EXAMPLES = 3


def run_checkpoint(
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


def sentence(result: ExpectationValidationResult, table: pa.Table) -> str:
    """Return what must hold, what was observed instead, and where."""
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
