"""The DAG as a person meets it: the trigger form in Airflow, the green run, and everything of it in MLflow's UI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dag_runs import EPOCHS, Ended, run_dag
from form import photograph
from playwright.sync_api import Page, expect

from pipeline.graph import GROUPS, STAGES
from pipeline.machine import places
from pipeline.services import demo
from pipeline.services.airflow_client import AirflowClient
from pipeline.tracking import evidence, rest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def test_a_run_that_the_form_started_ends_green_and_is_all_in_mlflow(
    killed_once: Ended, page: Page, screenshots: Path
) -> None:
    airflow, run_id = AirflowClient(), killed_once.run_id
    run = airflow.get(f"dags/{demo.DAG}/dagRuns/{run_id}")
    assert run["triggered_by"] == "ui"
    changed = {key: value for key, value in run["conf"].items() if value is not None}
    assert changed == {"recipe": "digits", "force": False, "train.fit.epochs": EPOCHS}
    states = {one["task_id"]: one["state"] for one in demo._instances(airflow, run_id)}
    assert states == dict.fromkeys(["check", *STAGES, "approve", "report"], "success")
    assert run["state"] == "success"
    links = airflow.get(f"dags/{demo.DAG}/dagRuns/{run_id}/taskInstances/train/links")["extra_links"]
    assert links["MLflow run"] == _stage(run_id, "train")["url"]

    _see_green_run(page, run_id, screenshots)
    _see_report_in_mlflow(page, run_id, screenshots)
    _see_runs_in_mlflow(page, killed_once.found, screenshots)


@pytest.mark.extra
def test_a_stage_shows_its_files(killed_once: Ended, page: Page) -> None:
    page.goto(f"{_stage(killed_once.run_id, 'evaluate')['url']}/artifacts")
    for name in ("evaluation.json", "verdict.json", "plots"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


@pytest.mark.extra
def test_two_runs_are_told_apart_and_compared_in_mlflow(killed_once: Ended, page: Page, screenshots: Path) -> None:
    smaller = run_dag({"budget.size_ratio": 9.0})  # which float networks do not reach
    runs = [rest.get_run(ended.found["parent_run_id"]) for ended in (killed_once, smaller)]
    winners = [rest.tags_of(run)["winner"] for run in runs]
    assert winners[1] == "int8" and smaller.code == 0, smaller.said
    experiment = runs[0]["info"]["experiment_id"]
    ids = [run["info"]["run_id"] for run in runs]

    page.set_viewport_size({"width": 1600, "height": 900})
    page.goto(rest.runs_url(experiment))
    for words in (smaller.run_id, *winners, "wall_seconds"):
        expect(page.get_by_text(words, exact=True).first).to_be_visible()
    expect(page.get_by_role("link", name="export_onnx")).to_have_count(0)  # runs of stages have another place
    photograph(page, screenshots / "mlflow_runs.png")

    page.goto(f"{places.mlflow()}/#/compare-runs?runs={json.dumps(ids)}&experiments={json.dumps([experiment])}")
    accuracy = page.get_by_text("proxy/accuracy", exact=True).first
    expect(accuracy).to_be_visible()
    page.get_by_text("Metrics", exact=True).last.scroll_into_view_if_needed()
    accuracy.scroll_into_view_if_needed()
    photograph(page, screenshots / "mlflow_compare.png")


def _see_green_run(page: Page, run_id: str, screenshots: Path) -> None:
    page.goto(f"{places.airflow()}/dags/{demo.DAG}/runs/{run_id}")
    expect(page.get_by_text("Success").first).to_be_visible()
    page.get_by_role("button", name="Show Graph").click()
    expect(page.locator(".react-flow__node")).to_have_count(len(GROUPS) + 2)  # check, report
    for group in GROUPS:
        expect(page.locator(".react-flow__node").filter(has_text=group.capitalize()).first).to_be_visible()
    photograph(page, screenshots / "airflow_groups.png")

    page.get_by_role("button", name="Expand all task groups").first.click()
    tasks = len(STAGES) + 3  # check, approve, report
    expect(page.locator(".react-flow__node")).to_have_count(len(GROUPS) + tasks)
    photograph(page, screenshots / "airflow_graph.png")

    page.get_by_role("button", name="Show Grid").click()
    expect(page.get_by_role("link", name="verify_served").first).to_be_visible()
    photograph(page, screenshots / "airflow_run.png")


def _see_report_in_mlflow(page: Page, run_id: str, screenshots: Path) -> None:
    page.goto(evidence.gather(run_id)["report_url"])
    report = page.frame_locator("iframe").first
    expect(report.get_by_text("PROMOTE").first).to_be_visible()
    photograph(page, screenshots / "mlflow_report.png")


def _see_runs_in_mlflow(page: Page, found: dict[str, Any], screenshots: Path) -> None:
    """The run of the pipeline: its parent with a nested run a stage, and their files."""
    page.goto(found["parent_url"])
    expect(page.get_by_text(found["pipeline"]).first).to_be_visible()
    expect(page.get_by_text("Finished").first).to_be_visible()
    for stage in ("verify_served", "promote", "evaluate"):
        expect(page.get_by_role("link", name=stage).first).to_be_visible()
    photograph(page, screenshots / "mlflow_run.png")


def _stage(run_id: str, name: str) -> dict[str, Any]:
    return next(stage for stage in evidence.gather(run_id)["stages"] if stage["stage"] == name)
