"""The commands that put load on a served model: `load` measures it, `tune-serving` searches settings with it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import options
from pipeline.errors import FlyweightError
from pipeline.machine import places, workspace
from pipeline.settings import parse, schema

if TYPE_CHECKING:
    from pipeline.serving.load.result import Closed, Open
    from pipeline.serving.load.tuning import Tuning

_PLOTS = (".png", ".svg")
_out = click.Path(dir_okay=False, path_type=Path)
_seconds = click.FloatRange(min=0.0, min_open=True)


def add_to(main: click.Group) -> None:
    """Add the commands to `main`."""
    main.add_command(load)
    main.add_command(tune_serving)


@click.command()
@click.argument("model")
@click.option(
    "--concurrency", metavar="N,N", help="Closed loop: requests in flight, one load each. 1 to 64 if left out."
)
@click.option("--rate", metavar="R,R", help="Open loop: requests per second, one load each. A stall is charged.")
@click.option("--arrivals", type=click.Choice(["poisson", "constant"]), help="With --rate; poisson if left out.")
@click.option("--seconds", type=_seconds, default=6.0, show_default=True, help="Of each measurement: three windows.")
@click.option("--images", type=click.IntRange(min=1), help="Send so many images of the data set instead of zeros.")
@click.option("--json", "json_file", type=_out, metavar="FILE", help="Write everything that was measured.")
@click.option("--plot", "plot_file", type=_out, metavar="FILE", help="Draw latency against throughput (.png, .svg).")
@click.option("--url", metavar="HOST:PORT", help="Triton's gRPC endpoint, if not this machine's.")
@options.recipe
@options.overrides
def load(
    model: str,
    concurrency: str | None,
    rate: str | None,
    arrivals: str | None,
    seconds: float,
    images: int | None,
    json_file: Path | None,
    plot_file: Path | None,
    url: str | None,
    recipe: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Measure a served model under load, from processes of its own, with Triton's own counters beside it."""
    loads = _loads(concurrency, rate, arrivals)
    _check_files(json_file, plot_file)
    from rich.console import Console

    from pipeline.progress import bar
    from pipeline.serving.load import report, sweep

    with _triton():
        address = url or places.triton_grpc()
        pixels = _images(images, options.settings(recipe, overrides)) if images else None
        inputs = sweep.inputs_of(sweep.served(model, address), pixels)
        with bar.shown("load", click.echo):
            found = sweep.sweep(loads, sweep.measured(model, inputs, seconds, address))
    Console().print(report.load_table(model, found))
    if json_file:
        sweep.write_json(found, json_file)
    if plot_file:
        from pipeline.report import plots

        plots.write(report.load_figure(model, found), plot_file)


@click.command("tune-serving")
@click.argument("model", required=False)
@click.option(
    "--onnx", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Tune for this file, not for a model."
)
@click.option("--seconds", type=_seconds, default=1.0, show_default=True, help="Of each measurement; there are many.")
@options.recipe
@options.overrides
def tune_serving(
    model: str | None, onnx: Path | None, seconds: float, recipe: str | None, overrides: tuple[str, ...]
) -> None:
    """Search instances, threads, maximum batch and queue delay under the budget's load; write what is better.

    Trial models run beside MODEL (serving.model if left out), which serves on. What is measurably better goes into the
    recipe, or into params.yaml without one; the table and a plot go to MLflow.
    """
    if model and onnx:
        raise FlyweightError(f"give a model ({model}) or a file (--onnx {onnx}), not both")
    from rich.console import Console

    from pipeline.progress import bar
    from pipeline.serving.load import report, tuning_run
    from pipeline.serving.triton.artifact import from_file
    from pipeline.tracking import other_run, rest

    settings = options.settings(recipe, overrides)
    rest.experiment_id()  # before minutes of measuring: is MLflow there?
    with _triton():
        artifact = from_file(onnx) if onnx else tuning_run.promoted(model or settings.serving.model)
        with bar.shown("tune-serving", click.echo):
            found = tuning_run.search(settings.serving, settings.budget, settings.promote, artifact, seconds)
    Console().print(report.tuning_table(found))
    with tempfile.TemporaryDirectory(prefix="flyweight-tuning-") as folder:
        tuning_run.write(found, Path(folder))
        metrics = {"ratio": found.ratio, "ratio_low": found.low, "ratio_high": found.high}
        parameters: dict[str, Any] = {"sha256": artifact.sha256, "load": found.load}
        parameters |= {f"start.{name}": value for name, value in tuning_run.values(found.start).items()}
        parameters |= {f"chosen.{name}": value for name, value in tuning_run.values(found.chosen).items()}
        address = other_run.log_run("tune-serving", parameters, metrics, Path(folder))
    click.echo(found.sentence)
    if found.better:
        _write_settings(found, recipe)
    click.echo(f"table and plot: {address}")


def _write_settings(found: Tuning, recipe: str | None) -> None:
    """Put what the winner changes into the recipe, or into params.yaml."""
    from pipeline.serving.load import tuning_run
    from pipeline.settings import edit

    path = workspace.root() / "recipes" / f"{recipe}.yaml" if recipe else workspace.root() / "params.yaml"
    there = tuning_run.values(parse.load(recipe).serving)
    changed = {name: value for name, value in tuning_run.values(found.chosen).items() if there[name] != value}
    edit.update(path, "serving", changed)
    words = ", ".join(f"serving.{name} = {value}" for name, value in changed.items())
    click.echo(f"{path}: {words}. The next promotion serves with it")


def _loads(concurrency: str | None, rate: str | None, arrivals: str | None) -> list[Closed] | list[Open]:
    """Return the loads that the options ask for. Raises `FlyweightError` where they contradict each other."""
    if concurrency and rate:
        raise FlyweightError(
            f"--concurrency {concurrency} and --rate {rate} exclude each other: a closed loop keeps requests in flight, an "
            f"open one sends them at a rate. Give one of them"
        )
    if arrivals and not rate:
        raise FlyweightError(f"--arrivals {arrivals} says how an open loop spaces its requests: give --rate with it")
    from pipeline.serving.load.result import Closed, Open
    from pipeline.serving.load.sweep import LEVELS

    if rate:
        kind: Any = arrivals or "poisson"
        return [Open(value, kind) for value in _numbers("--rate", rate, "numbers above 0, such as 100,200,400", float)]
    if concurrency:
        allowed = "whole numbers from 1 on, such as 1,16,64"
        return [Closed(value) for value in _numbers("--concurrency", concurrency, allowed, int)]
    return [Closed(level) for level in LEVELS]


def _numbers(option: str, text: str, allowed: str, kind: type) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise FlyweightError(f"{option} is {text!r}: it takes {allowed}")
    return values


def _check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Refuse what could not be written after the measurement."""
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file and not file.parent.is_dir():
            raise FlyweightError(f"{option} {file}: there is no directory {file.parent}; make it first")
    if plot_file and plot_file.suffix not in _PLOTS:
        raise FlyweightError(f"--plot {plot_file}: a plot ends in {' or '.join(_PLOTS)}")


def _images(count: int, settings: schema.Settings) -> Any:
    """Return the first `count` test images of the data set, (count, C, H, W)."""
    from pipeline.data.split import open_split

    split = open_split(places.data(settings.data.dataset), "test")
    if count > len(split):
        raise FlyweightError(f"--images is {count}, but {settings.data.dataset} has {len(split)} test images")
    return split.slice(0, count)


@contextlib.contextmanager
def _triton() -> Iterator[None]:
    """What goes wrong with the server, or on the way to it, is a `ConnectionError`: another try may pass."""
    from pipeline.serving.load.processes import LoadError
    from pipeline.serving.triton.errors import TritonError

    try:
        yield
    except (TritonError, LoadError) as error:
        raise ConnectionError(str(error)) from error
