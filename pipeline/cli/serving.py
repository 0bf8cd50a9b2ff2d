"""The commands that change what is served, or say what was: promote VERSION, rollback, history, reconcile, gc, ensemble."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from pipeline.cli import options
from pipeline.errors import FlyweightError


def add_to(main: click.Group) -> None:
    """Add the commands to `main`; its stage ``promote`` learns to take a VERSION."""
    for command in (rollback_command, history, reconcile_command, gc_command, ensemble, predict):
        main.add_command(command)
    main.add_command(_with_version(main.commands["promote"]))


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options.model
def predict(images: tuple[Path, ...], model: str) -> None:
    """Ask the served model for the class of each image file, over gRPC."""
    from pipeline.serving.triton.client import classify

    for path, (label, probability, version) in zip(images, classify(images, model), strict=True):
        click.echo(f"{path}: {label} ({probability:.1%}, {model} version {version})")


def _with_version(stage: click.Command) -> click.Command:
    """The stage's command, which with VERSION promotes what the registry has under that number instead."""
    run_stage = stage.callback
    assert run_stage is not None

    def promote(
        version: int | None,
        onnx: Path | None,
        name: str | None,
        golden: Path | None,
        labels: Path | None,
        canary: float | None,
        shadow: bool,
        seconds: float | None,
        requests: int | None,
        recipe: str | None,
        overrides: tuple[str, ...],
        **of_the_stage: Any,
    ) -> None:
        overrides = (*overrides, *_live_overrides(canary, shadow, seconds, requests))
        of_a_file = {"--name": name, "--golden": golden, "--labels": labels}
        if onnx is None and (given := [option for option, value in of_a_file.items() if value]):
            raise FlyweightError(f"{', '.join(given)} says more of a file: name it with --onnx")
        if version is None and onnx is None:
            run_stage(recipe=recipe, overrides=overrides, **of_the_stage)
            return
        named = {"inputs": "--input", "pipeline": "--pipeline", "force": "--force", "result": "--result"}
        if given := [option for key, option in named.items() if of_the_stage[key]]:
            what = "the registered version" if onnx is None else "a file"
            raise FlyweightError(f"promote takes {what} here: {', '.join(given)} is for the stage alone")
        if version is not None and onnx is not None:
            raise FlyweightError(f"promote takes the registered version {version} or the file {onnx}, not both")
        if onnx is not None:
            _promote_file(onnx, name, golden, labels, recipe, overrides)
        elif version is not None:
            _promote_version(version, recipe, overrides)

    text = (
        f"{stage.help}\n\nWith VERSION, what the registry has under that number goes live instead: another candidate, an "
        f"older one. With --onnx, any ONNX file does."
    )
    argument = click.Argument(["version"], type=click.IntRange(1, 2**31 - 1), required=False, metavar="[VERSION]")
    params = [argument, *_of_a_file(), *_of_live_requests(), *stage.params]
    return click.Command("promote", params=params, callback=promote, help=text)


def _of_a_file() -> list[click.Parameter]:
    """Return the options of ``promote --onnx``."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    return [
        click.Option(["--onnx"], type=file, help="Promote this ONNX file, whatever it takes and gives."),
        click.Option(["--name"], metavar="NAME", help="Name in Triton for --onnx; serving.model if left out."),
        click.Option(["--golden"], type=file, help="Inputs that --onnx must answer alike when served, as .npz."),
        click.Option(["--labels"], type=file, help="Names of the classes in the first output of --onnx, one a line."),
    ]


def _of_live_requests() -> list[click.Parameter]:
    """Return the options of a test on live requests."""
    return [
        click.Option(
            ["--canary"], type=Share(), help="Let the candidate answer this share of the live requests first."
        ),
        click.Option(["--shadow"], is_flag=True, help="Let it only get copies of them, and answer none."),
        click.Option(
            ["--seconds"], type=click.FloatRange(0, min_open=True), help="Longest that --canary or --shadow take."
        ),
        click.Option(["--requests"], type=click.IntRange(1), help="Minimum number of live requests that they take."),
    ]


class Share(click.ParamType):
    """A share above 0 and up to 1: ``5%`` or ``0.05``."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share as a number."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0.0 < share <= 1.0:
            self.fail(f"{value!r} is no share: give one above 0 and up to 1, such as 5% or 0.05", param, ctx)
        return share


def _live_overrides(canary: float | None, shadow: bool, seconds: float | None, requests: int | None) -> tuple[str, ...]:
    """Return the settings that the options of a test on live requests stand for."""
    given = {"seconds": seconds, "requests": requests}
    if canary is None and not shadow:
        if without := [f"--{name}" for name, value in given.items() if value is not None]:
            raise FlyweightError(f"{', '.join(without)} is for a test on live requests: add --canary SHARE or --shadow")
        return ()
    values = {"test": json.dumps("shadow" if shadow else "canary"), "share": canary, "s": seconds, "requests": requests}
    return tuple(f"promote.live_{key}={value}" for key, value in values.items() if value is not None)


def _promote_version(version: int, recipe: str | None, overrides: tuple[str, ...]) -> None:
    from pipeline.serving.promotion.promote import promote_artifact
    from pipeline.serving.promotion.pull import pull
    from pipeline.tracking.registry import model_registry

    settings = options.settings(recipe, overrides)
    registry = model_registry()
    with tempfile.TemporaryDirectory(prefix="flyweight-pull-") as folder, _triton() as client:
        pulled = pull(registry, settings.serving.model, version, Path(folder) / "model")
        done = promote_artifact(
            settings.serving, pulled.artifact, pulled.golden, registry, pulled.tags, client, settings.promote, version
        )
    _say_promoted(done)


def _promote_file(
    onnx: Path,
    name: str | None,
    golden: Path | None,
    labels: Path | None,
    recipe: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Register an ONNX file of any origin with its spec beside it, and promote it."""
    from pipeline.models.spec import save_spec
    from pipeline.records.candidates import MODEL_FILE
    from pipeline.serving.promotion.promote import promote_artifact
    from pipeline.serving.promotion.pull import BY_HAND, VERDICT
    from pipeline.serving.triton.artifact import from_file, golden_answers, made_up, read_inputs
    from pipeline.tracking.registry import model_registry

    settings = options.settings(recipe, (*overrides, *([f"serving.model={json.dumps(name)}"] if name else [])))
    rows = min(settings.promote.golden_images, settings.serving.max_batch_size)
    names = labels.read_text(encoding="utf-8").splitlines() if labels else ()
    inputs = read_inputs(golden) if golden else None
    artifact = from_file(onnx, names, inputs)
    demanded = golden_answers(artifact, inputs or made_up(artifact.spec, rows), settings.serving.threads)
    with tempfile.TemporaryDirectory(prefix="flyweight-onnx-") as folder, _triton() as client:
        directory = Path(folder) / onnx.stem  # the registry takes a directory, of which the user's holds more
        directory.mkdir()
        shutil.copyfile(onnx, directory / MODEL_FILE)
        save_spec(directory, artifact.spec)
        done = promote_artifact(
            settings.serving,
            replace(artifact, onnx=directory / MODEL_FILE),
            demanded,
            model_registry(),
            {VERDICT: BY_HAND, "candidate": artifact.candidate, "source": str(onnx.resolve())},
            client,
            settings.promote,
        )
    _say_promoted(done)


def _say_promoted(done: Any) -> None:
    was = "served already" if done.reused else f"replaced version {done.previous_version or 'none'}"
    click.echo(f"{done.model} serves version {done.version} ({was}), SHA-256 {done.sha256}")


@click.command("rollback")
@options.model
def rollback_command(model: str) -> None:
    """Serve the version before the present one again; instant while it is warm."""
    from pipeline.serving.promotion.rollback import rollback
    from pipeline.tracking.registry import model_registry

    with _triton() as client:
        version = rollback(model, client)
    click.echo(f"{model} serves version {version} again")
    try:
        model_registry().set_alias(model, "champion", version)
    except Exception as error:  # no failure of the rollback: whoever repeated it would go back one version more
        click.echo(f"the registry's alias was not moved ({error}): `flyweight reconcile` does it", err=True)


@click.command()
@options.model
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def history(model: str, as_json: bool) -> None:
    """Show what became of each version of a served model: live, refused and why, rolled back."""
    from pipeline.serving.promotion.history import events, interrupted

    for event in events(model):
        line = (
            json.dumps(asdict(event))
            if as_json
            else f"{event.time}  {event.version or '':>4}  {event.what:11} {event.detail}"
        )
        click.echo(line.rstrip())
    if not as_json and (open_end := interrupted(model)):
        click.echo(f"not at its end: {open_end}")


@click.command("reconcile")
@options.recipe
@options.overrides
def reconcile_command(recipe: str | None, overrides: tuple[str, ...]) -> None:
    """Compare ledger, disk, Triton and registry; repair what can be, say what a person must do."""
    from pipeline.serving.promotion.reconcile import reconcile
    from pipeline.tracking.registry import model_registry

    settings = options.settings(recipe, overrides)
    model = settings.serving.model
    with _triton() as client:
        try:
            report = reconcile(settings.serving, model_registry(), client, settings.promote)
        except BlockingIOError:
            click.echo(f"{model} is being changed right now: there is nothing to compare before that is done")
            return
    for finding in report.findings:
        click.echo(f"- {finding}")
    click.echo(f"{model} serves version {report.version}" if report.version else f"nothing is served as {model}")
    if wanted := report.needs_a_person:
        raise FlyweightError("\n".join(str(finding) for finding in wanted))


@click.command("gc")
@options.model
def gc_command(model: str) -> None:
    """Remove old versions from Triton's repository: never the served one, nor the one that rollback goes back to."""
    from pipeline.serving.promotion.retention import gc

    with _triton() as client:
        freed = gc(model, client)
    for version, size in freed.items():
        click.echo(f"removed version {version} of {model} ({size / 1e6:.1f} MB); the registry still has it")
    if not freed:
        click.echo(f"every version of {model} on disk is needed")


@click.command()
@click.argument("name")
@click.argument("steps", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def ensemble(name: str, steps: Path) -> None:
    """Serve several models as one called NAME; the YAML file STEPS says who gets what from whom."""
    from pipeline.serving.triton.ensemble import publish, read_steps

    read = read_steps(steps)
    with _triton() as client:
        publish(name, read, client)
    click.echo(f"{name} answers with {', then '.join(step.model for step in read)}")


@contextlib.contextmanager
def _triton() -> Iterator[Any]:
    """A client for Triton; what goes wrong with the server is a `ConnectionError`: another try may pass."""
    from pipeline.serving.triton.client import Client
    from pipeline.serving.triton.errors import TritonError

    try:
        with Client() as client:
            yield client
    except TritonError as error:
        raise ConnectionError(str(error)) from error
