"""Options that several commands of `flyweight` share, and what they mean."""

from __future__ import annotations

import sys

import click

from pipeline.settings import parse, schema

recipe = click.option("--recipe", metavar="NAME", help=f"Overlay on params.yaml: {', '.join(parse.recipes())}.")
overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, e.g. train.fit.epochs=3. Repeatable."
)
force = click.option("--force", is_flag=True, help="Run even where a finished run has the same fingerprint.")
pipeline = click.option("--pipeline", metavar="NAME", help="Name of the pipeline run in MLflow.")
model = click.option("--model", default="proxy", show_default=True, help="Model name in Triton.")


def settings(recipe_name: str | None, pairs: tuple[str, ...]) -> schema.Settings:
    """Return the settings that ``--recipe`` and ``--set`` ask for. Raises `SettingsError`."""
    return parse.load(recipe_name, parse.parse_overrides(pairs))


def say(line: str) -> None:
    """Print a line at once, so that whoever follows a pipe sees it too."""
    click.echo(line)
    sys.stdout.flush()
