"""The DAG as a person meets it: the trigger form in Airflow, the green run, and everything of it in MLflow's UI."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import EPOCHS, Ended
from playwright.sync_api import Page, expect, sync_playwright

from pipeline import demo, evidence, places
from pipeline.airflow_client import AirflowClient
from pipeline.airflow_settings import USER, airflow_password
from pipeline.graph import STAGES

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MLFLOW_AS_FOR_TRAINING = """
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""
RUN_SECONDS = 900

pytestmark = [pytest.mark.integration, pytest.mark.timeout(RUN_SECONDS + 300)]
expect.set_options(timeout=60_000)


@pytest.fixture
def page(chromium: str, running_stack: None, screenshots: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a fresh browser; where it was when the test failed is in a picture."""
    failed_before = request.session.testsfailed
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(60_000)
        page.add_init_script(MLFLOW_AS_FOR_TRAINING)
        yield page
        if request.session.testsfailed > failed_before:
            page.screenshot(path=screenshots / "failed.png")
            (screenshots / "failed.html").write_text(page.content(), encoding="utf-8")
            print(f"where it failed: {page.url}, {screenshots / 'failed.png'}")
        browser.close()


def test_the_form_starts_a_run_that_ends_green_and_is_all_in_mlflow(
    killed_once: Ended, page: Page, screenshots: Path
) -> None:
    airflow = AirflowClient()
    demo._wait_for_dag(airflow)

    _log_in(page)
    _fill_form(page, screenshots)
    page.wait_for_url("**/runs/**")
    run = _newest_run(airflow)
    changed = {key: value for key, value in run["conf"].items() if value is not None}
    assert changed == {"recipe": "digits", "force": False, "train.fit.epochs": EPOCHS}

    page.goto("about:blank")  # the grid asks Airflow every few seconds, and draws: cores that the run needs
    ended = _wait_for_end(airflow, run["dag_run_id"])
    states = {one["task_id"]: one["state"] for one in demo._instances(airflow, run["dag_run_id"])}
    assert states == dict.fromkeys(["check", *STAGES, "approve", "report"], "success")
    assert ended == "success"

    _see_green_run(page, run["dag_run_id"], screenshots)
    _see_report_in_mlflow(page, run["dag_run_id"], screenshots)
    _see_runs_in_mlflow(page, killed_once.found, screenshots)


def _log_in(page: Page) -> None:
    page.goto(f"{places.airflow()}/dags/{demo.DAG}")
    page.fill("input[name=username]", USER)
    page.fill("input[name=password]", airflow_password(places.home() / "airflow"))
    page.click("button[type=submit]")


def _fill_form(page: Page, screenshots: Path) -> None:
    """Choose the recipe, change one setting in its section, and press Trigger."""
    page.get_by_role("button", name="Trigger Dag").click()
    form = page.get_by_role("dialog").filter(has_text="Run Parameters")
    recipe = form.get_by_role("combobox").first
    expect(form).to_contain_text("Where every setting that is left empty below comes from")
    recipe.fill("digits")
    recipe.press("Enter")
    for section in ("budget: What the user can afford", "prune: A smaller network", "serving: How Triton serves"):
        expect(form.get_by_role("button", name=section)).to_be_visible()
    form.get_by_role("button", name="train: The teacher.").click()
    epochs = form.locator("input[name='element_train.fit.epochs']")
    expect(form).to_contain_text("Passes over the training images.")
    epochs.fill(str(EPOCHS))
    epochs.press("Tab")
    page.screenshot(path=screenshots / "airflow_form.png")
    form.get_by_role("button", name="Trigger", exact=True).click()


def _newest_run(airflow: AirflowClient) -> dict[str, Any]:
    return airflow.get(f"dags/{demo.DAG}/dagRuns", order_by="-run_after", limit=1)["dag_runs"][0]


def _wait_for_end(airflow: AirflowClient, run_id: str) -> str:
    end = time.monotonic() + RUN_SECONDS
    while (state := airflow.get(f"dags/{demo.DAG}/dagRuns/{run_id}")["state"]) in {"queued", "running"}:
        assert time.monotonic() < end, f"{run_id} is still {state} after {RUN_SECONDS} s"
        time.sleep(1)
    return state


def _see_green_run(page: Page, run_id: str, screenshots: Path) -> None:
    page.goto(f"{places.airflow()}/dags/{demo.DAG}/runs/{run_id}")
    expect(page.get_by_text("Success").first).to_be_visible()
    expect(page.get_by_role("link", name="verify_served").first).to_be_visible()
    page.screenshot(path=screenshots / "airflow_run.png")

    page.get_by_role("button", name="Show Graph").click()
    expect(page.locator(".react-flow__node")).to_have_count(len(STAGES) + 3)  # check, approve, report
    page.screenshot(path=screenshots / "airflow_graph.png")

    page.goto(f"{places.airflow()}/dags/{demo.DAG}/runs/{run_id}/tasks/train/details")
    link = page.get_by_role("link", name="MLflow run")
    expect(link).to_have_attribute("href", _stage(run_id, "train")["url"])


def _see_report_in_mlflow(page: Page, run_id: str, screenshots: Path) -> None:
    page.goto(evidence.gather(run_id)["report_url"])
    report = page.frame_locator("iframe").first
    expect(report.get_by_text("PROMOTE").first).to_be_visible()
    page.screenshot(path=screenshots / "mlflow_report.png")


def _see_runs_in_mlflow(page: Page, found: dict[str, Any], screenshots: Path) -> None:
    """The run that made what the one from the form reused: its parent with a nested run a stage, and their files."""
    page.goto(found["parent_url"])
    expect(page.get_by_text(found["pipeline"]).first).to_be_visible()
    expect(page.get_by_text("Finished").first).to_be_visible()
    for stage in ("verify_served", "promote", "evaluate"):
        expect(page.get_by_role("link", name=stage).first).to_be_visible()
    page.screenshot(path=screenshots / "mlflow_run.png")

    evaluate = next(stage for stage in found["stages"] if stage["stage"] == "evaluate")
    page.goto(f"{evaluate['url']}/artifacts")
    for name in ("evaluation.json", "verdict.json", "plots"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def _stage(run_id: str, name: str) -> dict[str, Any]:
    return next(stage for stage in evidence.gather(run_id)["stages"] if stage["stage"] == name)
