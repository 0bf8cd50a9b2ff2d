"""The commands for the services on this machine: demo, up, down, status, doctor."""

from __future__ import annotations

import sys

import click

from pipeline.cli import options
from pipeline.errors import FlyweightError
from pipeline.settings import parse


def add_to(main: click.Group) -> None:
    """Add the commands to `main`."""
    for command in (demo, up, down, status, doctor):
        main.add_command(command)


@click.command()
@options.recipe
@options.overrides
@options.force
def demo(recipe: str | None, overrides: tuple[str, ...], force: bool) -> None:
    """Start everything, run the DAG through Airflow and show its progress and its evidence."""
    from pipeline.services import services
    from pipeline.services.demo import run

    options.settings(recipe or "demo", overrides)
    services.up(("mlflow", "triton", "airflow"))
    sys.exit(run(recipe or "demo", parse.parse_overrides(overrides), force=force))


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(["mlflow", "triton", "airflow"]))
def up(names: tuple[str, ...]) -> None:
    """Start MLflow, Triton and Airflow on loopback (or only the SERVICES named)."""
    from pipeline.services import services

    services.up(names or ("mlflow", "triton", "airflow"))


@click.command()
def down() -> None:
    """Stop everything that `up` started; leave no process."""
    from pipeline.services import services

    services.down()


@click.command()
def status() -> None:
    """Show what runs, what serves and how the newest pipeline run stands."""
    from pipeline.services import services
    from pipeline.tracking import evidence

    found_services = services.status()
    for service in found_services:
        click.echo(service)
    if any(service.name == "mlflow" and service.healthy for service in found_services):
        try:
            found = evidence.gather("latest")
        except FlyweightError as error:
            click.echo(error)
            return
        click.echo(f"\npipeline run {found['pipeline']}  {found['parent_url']}")
        for stage in found["stages"]:
            click.echo(f"  {stage['stage']:15} {stage['status']:9} {stage['reason']}")


@click.command()
def doctor() -> None:
    """Check this machine: ports, Triton, stores, versions, disk, GPU; each problem with its fix."""
    from pipeline.services.doctor import checks

    problems = 0
    for found in checks():
        mark = {True: "ok  ", False: "BAD ", None: "note"}[found.ok]
        click.echo(f"{mark} {found.name:16} {found.found}")
        if found.ok is False:
            problems += 1
        if found.ok is not True and found.fix:
            click.echo(f"     {'':16} fix: {found.fix}")
    if problems:
        raise FlyweightError(f"{problems} of the checks failed")
