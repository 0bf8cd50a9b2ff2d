"""Airflow's trigger form as a person fills it, in a headless browser."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from playwright.sync_api import Page, expect, sync_playwright

from pipeline.machine import places
from pipeline.services import demo
from pipeline.services.airflow_settings import USER, airflow_password

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
expect.set_options(timeout=60_000)


@contextlib.contextmanager
def page(chromium: str) -> Iterator[Page]:
    """A page of a fresh browser, closed after the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        opened.set_default_timeout(60_000)
        opened.add_init_script(MLFLOW_AS_FOR_TRAINING)
        yield opened
        browser.close()


def photograph(page: Page, picture: Path) -> None:
    """Draw the page into a file if pictures are to be kept: each takes a second."""
    if "FLYWEIGHT_SCREENSHOTS" in os.environ:
        page.screenshot(path=picture)


def log_in(page: Page) -> None:
    """Open the DAG, as the user whose password the stack has made."""
    page.goto(f"{places.airflow()}/dags/{demo.DAG}")
    page.fill("input[name=username]", USER)
    page.fill("input[name=password]", airflow_password(places.home() / "airflow"))
    page.click("button[type=submit]")
    # The click returns before the answer is there: who goes on at once loses the session, or is led back to the DAG.
    expect(page.get_by_role("button", name="Trigger Dag")).to_be_visible()


def trigger(page: Page, epochs: int, picture: Path) -> str:
    """Choose the recipe, change one setting in its section, press Trigger, and return the run's id."""
    page.get_by_role("button", name="Trigger Dag").click()
    form = page.get_by_role("dialog").filter(has_text="Run Parameters")
    recipe = form.get_by_role("combobox").first
    expect(form).to_contain_text("Where every setting that is left empty below comes from")
    recipe.fill("digits")
    recipe.press("Enter")
    for section in ("budget: What the user can afford", "prune: A smaller network", "serving: How Triton serves"):
        expect(form.get_by_role("button", name=section)).to_be_visible()
    form.get_by_role("button", name="train: The teacher.").click()
    field = form.locator("input[name='element_train.fit.epochs']")
    expect(form).to_contain_text("Passes over the training images.")
    field.fill(str(epochs))
    field.press("Tab")
    photograph(page, picture)
    form.get_by_role("button", name="Trigger", exact=True).click()
    page.wait_for_url("**/runs/**")
    return unquote(page.url.rpartition("/runs/")[2].partition("/")[0])
