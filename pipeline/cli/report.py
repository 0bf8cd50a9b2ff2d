"""`flyweight report`: the evidence page of a pipeline run."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import options


@click.command()
@click.option("--pipeline", metavar="NAME", default="latest", show_default=True, help="Name of the pipeline run.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the page to this file as well.")
@click.option(
    "--close", "ending", type=click.Choice(["FINISHED", "FAILED"]), help="Also end the pipeline run's parent."
)
def report(pipeline: str, out: Path | None, ending: str | None) -> None:
    """Write the evidence page of a pipeline run and log it to MLflow."""
    write_report(pipeline, out, ending)


def write_report(pipeline: str, out: Path | None = None, ending: str | None = None) -> None:
    """Gather the evidence of `pipeline`, log its page to MLflow, write it to `out` and end the run as `ending` says."""
    from pipeline.report import page
    from pipeline.tracking import evidence, pipeline_run

    found = evidence.gather(pipeline)
    options.say(f"flyweight: run {found['parent_run_id']} {found['parent_url']}")
    text = page.page(found)
    address = pipeline_run.log_report(found, text, page.summary(found))
    if out:
        out.write_text(text, encoding="utf-8")
    pipeline_run.close_pipeline(found["pipeline"], ending == "FINISHED" if ending else evidence.is_complete(found))
    click.echo(f"report: {address}")
