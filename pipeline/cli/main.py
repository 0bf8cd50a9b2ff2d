"""The command line `flyweight` (also ``python -m pipeline``): all commands, and errors as exit codes.

Exit codes: 0 done, 1 failed and may be tried again, 2 the user can repair it and a retry cannot, 3 skipped here.
Commands import what they need when they run: this file starts for every task of every DAG run.
"""

from __future__ import annotations

import atexit
import gc
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from pipeline import __version__
from pipeline.cli import check, load, report, services, serving, stages
from pipeline.errors import FlyweightError, Interrupted, Skipped


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


main.add_command(check.check)
main.add_command(report.report)
for _room in (stages, services, serving, load):
    _room.add_to(main)


def run(command: Callable[[], Any] = main) -> None:
    """The entry point: run the command line and turn errors into exit codes and plain sentences."""
    atexit.register(gc.freeze)  # or Python looks through every object of PyTorch again as it ends, for about a second
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
