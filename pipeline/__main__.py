"""The command line `flyweight` (also ``python -m pipeline``).

Exit codes: 0 done, 1 failed and may be tried again, 2 the user can mend it and a retry cannot, 3 skipped here.
Commands import what they need when they run: this file starts for every task of every DAG run.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import __version__
from pipeline.cli import load, options, serving
from pipeline.errors import FlyweightError, Interrupted, Skipped
from pipeline.graph import STAGES, Stage
from pipeline.settings import schema

if TYPE_CHECKING:
    from pipeline.models.spec import ModelSpec

_recipe, _set, _force, _pipeline = options.recipe, options.overrides, options.force, options.pipeline


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="flyweight")
def main() -> None:
    """Turn a heavyweight teacher into a flyweight proxy that holds its own, prove it, and serve it."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    for noisy in (
        "mlflow",
        "httpx",
        "urllib3",
        "great_expectations",
        "onnxscript",
        "torch.onnx",
        "alembic",
        "matplotlib",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@main.command()
@_recipe
@_set
def check(recipe: str | None, overrides: tuple[str, ...]) -> None:
    """Check that the settings hold together and that every component can be made with its arguments."""
    settings = options.settings(recipe, overrides)
    for key, kind, component in settings.components():
        try:
            given = {"in_channels": 1, "classes": 10} if kind == "models" else {}
            schema.Component(name=component.name, **(given | component.arguments)).build(kind)
            if kind == "models" and ":" in component.name:  # the tests hold the built-in ones to it
                from pipeline.export import onnx_graph

                onnx_graph.check_exportable(_spec(settings, component), settings.export_onnx.opset)
        except FlyweightError as error:
            raise FlyweightError(f"{key}: {error}") from error
    from pipeline.compression.pruning import reach
    from pipeline.models import checkpoint

    reach.in_rounds(settings.prune)
    student = _spec(settings, settings.distill.model)
    reach.check_reach(settings.prune, student)
    quantizer = settings.quantize.build_quantizer()
    if hasattr(quantizer, "check_network"):
        quantizer.check_network(checkpoint.build(student))
    if settings.export_onnx.mobile != "off":
        from pipeline.export import executorch

        executorch.check_installed()
    click.echo(f"the settings hold: recipe {recipe or 'none'}, data set {settings.data.dataset}")


def _spec(settings: schema.Settings, model: schema.Component) -> ModelSpec:
    """Return the spec of a fresh `model` for the data set, so that it can be refused before it is trained."""
    from pipeline import components
    from pipeline.models.spec import Preprocessing, image_classifier

    dataset = components.build("datasets", settings.data.dataset, {})
    channels = dataset.image_shape[0]
    plain = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)
    return image_classifier(model.name, model.arguments, dataset.image_shape, dataset.labels, plain)


def _stage_command(stage: Stage) -> click.Command:
    """The command that runs one stage: what a person types and what Airflow starts."""

    @click.command(stage.name, help=f"{stage.help} Inputs: {', '.join(stage.inputs) or 'none'}.")
    @_recipe
    @_set
    @_force
    @_pipeline
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
            say=_say,
        )
        if result:
            result.write_text(json.dumps(asdict(ended)), encoding="utf-8")
        if ended.status == "skipped":
            raise Skipped(ended.reason)

    return command


for _one in STAGES.values():
    main.add_command(_stage_command(_one))
serving.add_to(main)
load.add_to(main)


@main.command("all")
@_recipe
@_set
@_force
@_pipeline
def all_stages(recipe: str | None, overrides: tuple[str, ...], force: bool, pipeline: str | None) -> None:
    """Run the whole graph without Airflow; starts MLflow and Triton if need be and leaves them running."""
    from pipeline.services import services as stack
    from pipeline.tracking.stage import run_stage

    settings = options.settings(recipe, overrides)
    pipeline = _name(pipeline, "all")
    stack.up(("mlflow", "triton"))
    runs: dict[str, str] = {}
    try:
        for stage in STAGES.values():
            inputs = {name: runs[source] for name, source in stage.inputs.items()}
            ended = run_stage(stage.name, settings, inputs, pipeline=pipeline, force=force, say=_say)
            runs[stage.name] = ended.run_id
    finally:
        _report(pipeline, None)
    _print_table(pipeline)


@main.command()
@_recipe
@_set
@_force
def demo(recipe: str | None, overrides: tuple[str, ...], force: bool) -> None:
    """Start everything, run the DAG through Airflow and show its progress and its evidence."""
    from pipeline.services import demo as demonstration
    from pipeline.services import services as stack

    options.settings(recipe or "demo", overrides)
    stack.up(("mlflow", "triton", "airflow"))
    sys.exit(demonstration.run(recipe or "demo", schema.parse_overrides(overrides), force=force))


@main.command()
@click.argument("services", nargs=-1, type=click.Choice(["mlflow", "triton", "airflow"]))
def up(services: tuple[str, ...]) -> None:
    """Start MLflow, Triton and Airflow on loopback (or only the SERVICES named)."""
    from pipeline.services import services as stack

    stack.up(services or ("mlflow", "triton", "airflow"))


@main.command()
def down() -> None:
    """Stop everything that `up` started; leave no process."""
    from pipeline.services import services as stack

    stack.down()


@main.command()
def status() -> None:
    """Show what runs, what serves and how the newest pipeline run stands."""
    from pipeline.services import services as stack
    from pipeline.tracking import evidence

    services = stack.status()
    for service in services:
        click.echo(service)
    if any(service.name == "mlflow" and service.healthy for service in services):
        try:
            found = evidence.gather("latest")
        except FlyweightError as error:
            click.echo(error)
            return
        click.echo(f"\npipeline run {found['pipeline']}  {found['parent_url']}")
        for stage in found["stages"]:
            click.echo(f"  {stage['stage']:15} {stage['status']:9} {stage['reason']}")


@main.command()
@click.option("--pipeline", metavar="NAME", default="latest", show_default=True, help="Name of the pipeline run.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the page to this file as well.")
@click.option(
    "--close", "ending", type=click.Choice(["FINISHED", "FAILED"]), help="Also end the pipeline run's parent."
)
def report(pipeline: str, out: Path | None, ending: str | None) -> None:
    """Write the evidence page of a pipeline run and log it to MLflow."""
    _report(pipeline, out, ending)


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options.model
def predict(images: tuple[Path, ...], model: str) -> None:
    """Ask the served model for the class of each image file, over gRPC."""
    from pipeline.serving.triton.client import classify

    for path, (label, probability, version) in zip(images, classify(images, model), strict=True):
        click.echo(f"{path}: {label} ({probability:.1%}, {model} version {version})")


@main.command()
def doctor() -> None:
    """Check this machine: ports, Triton, stores, versions, disk, GPU; each problem with its fix."""
    from pipeline.services import doctor as examination

    problems = 0
    for found in examination.checks():
        mark = {True: "ok  ", False: "BAD ", None: "note"}[found.ok]
        click.echo(f"{mark} {found.name:16} {found.found}")
        if found.ok is False:
            problems += 1
        if found.ok is not True and found.fix:
            click.echo(f"     {'':16} fix: {found.fix}")
    if problems:
        raise FlyweightError(f"{problems} of the checks failed")


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


def _report(pipeline: str, out: Path | None, ending: str | None = None) -> None:
    from pipeline.report import page
    from pipeline.tracking import evidence, pipeline_run

    found = evidence.gather(pipeline)
    _say(f"flyweight: run {found['parent_run_id']} {found['parent_url']}")
    text = page.page(found)
    address = pipeline_run.log_report(found, text, page.summary(found))
    if out:
        out.write_text(text, encoding="utf-8")
    pipeline_run.close_pipeline(found["pipeline"], ending == "FINISHED" if ending else evidence.is_complete(found))
    click.echo(f"report: {address}")


def _print_table(pipeline: str) -> None:
    from rich.console import Console

    from pipeline.report import table
    from pipeline.tracking import evidence

    Console().print(table.rich_table(evidence.gather(pipeline)))


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def run(command: Callable[[], Any] = main) -> None:
    """The entry point: run the command line and turn errors into exit codes and plain sentences."""
    try:
        command()
    except Skipped as skipped:
        click.echo(f"skipped: {skipped}")
        sys.exit(3)
    except FlyweightError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (ConnectionError, BlockingIOError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except Interrupted as told:
        click.echo(f"error: {told}", err=True)
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    run()
