"""The commands that run stages: one per stage, and `all` for the whole graph without Airflow."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.report import write_report
from pipeline.errors import FlyweightError, Skipped
from pipeline.graph import STAGES, Stage


def add_to(main: click.Group) -> None:
    """Add the commands to `main`."""
    for stage in STAGES.values():
        main.add_command(_stage_command(stage))
    main.add_command(all_stages)


def _stage_command(stage: Stage) -> click.Command:
    """The command that runs one stage: what a person types and what Airflow starts."""

    @click.command(stage.name, help=f"{stage.help} Inputs: {', '.join(stage.inputs) or 'none'}.")
    @options.recipe
    @options.overrides
    @options.force
    @options.pipeline
    @click.option(
        "--input", "inputs", multiple=True, metavar="NAME=RUN", help="An input: MLflow run id or directory. Repeatable."
    )
    @click.option(
        "--result", type=click.Path(dir_okay=False, path_type=Path), help="Write how it ended to this JSON file."
    )
    def command(
        recipe: str | None,
        overrides: tuple[str, ...],
        force: bool,
        pipeline: str | None,
        inputs: tuple[str, ...],
        result: Path | None,
    ) -> None:
        from pipeline.tracking.stage import run_stage

        ended = run_stage(
            stage.name,
            options.settings(recipe, overrides),
            _inputs(inputs),
            pipeline=_name(pipeline, stage.name),
            force=force,
            say=options.say,
        )
        if result:
            result.write_text(json.dumps(asdict(ended)), encoding="utf-8")
        if ended.status == "skipped":
            raise Skipped(ended.reason)

    return command


@click.command("all")
@options.recipe
@options.overrides
@options.force
@options.pipeline
def all_stages(recipe: str | None, overrides: tuple[str, ...], force: bool, pipeline: str | None) -> None:
    """Run the whole graph without Airflow; starts MLflow and Triton if need be and leaves them running."""
    from pipeline.services import services
    from pipeline.tracking.stage import run_stage

    settings = options.settings(recipe, overrides)
    pipeline = _name(pipeline, "all")
    services.up(("mlflow", "triton"))
    runs: dict[str, str] = {}
    try:
        for stage in STAGES.values():
            inputs = {name: runs[source] for name, source in stage.inputs.items()}
            ended = run_stage(stage.name, settings, inputs, pipeline=pipeline, force=force, say=options.say)
            runs[stage.name] = ended.run_id
    finally:
        write_report(pipeline)
    _print_table(pipeline)


def _inputs(pairs: tuple[str, ...]) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise FlyweightError(f"--input takes name=<run id or directory>; got {pair!r}")
        inputs[name] = value
    return inputs


def _name(given: str | None, what: str) -> str:
    """The name of a pipeline run: as given, or made from the time."""
    name = given or f"{what}-{time.strftime('%Y%m%d-%H%M%S')}"
    if any(letter in name for letter in "'\"\\`\n"):
        raise FlyweightError(f"--pipeline {name!r}: a name has no quotes, backslashes or line breaks")
    return name


def _print_table(pipeline: str) -> None:
    from rich.console import Console

    from pipeline.report import table
    from pipeline.tracking import evidence

    Console().print(table.rich_table(evidence.gather(pipeline)))
