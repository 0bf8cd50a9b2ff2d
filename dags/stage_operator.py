"""One stage as one Airflow task: ``python -m pipeline <stage>`` as a supervised process, with its MLflow run a click away.

The operator knows Flyweight's command line and nothing else of it. XCom carries run ids only.

    exit code 0   success; the XCom is the MLflow run id
    exit code 2   the user can fix it and a retry cannot: failed at once, with the command's own sentence
    exit code 3   skipped, with the reason; the XCom is there all the same, for the stages that read it
    anything else failed, and tried again where the task has retries left
"""

from __future__ import annotations

import collections
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from pipeline.graph import STAGES
from pipeline.services.supervise import GRACE_SECONDS
from pipeline.settings.form import FORCE, settings_arguments

COMMAND = (sys.executable, "-m", "pipeline")
CHECK, REPORT = "check", "report"
_RUN_LINE = re.compile(r"^flyweight: run (?P<run_id>\S+) (?P<url>\S+)$")
_ERROR_LINE = re.compile(r"^(flyweight: )?error: ", re.IGNORECASE)
_TAIL_LINES = 100


class MlflowRunLink(BaseOperatorLink):
    """A button on the task that opens its MLflow run: while it runs, after it failed, and for a reused run."""

    name = "MLflow run"
    xcom_key = "mlflow_run_url"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return what was pushed while the task ran: Airflow calls this at its end and stores the answer once more."""
        return operator.mlflow_run_url if isinstance(operator, StageOperator) else ""


class StageOperator(BaseOperator):
    """Runs one command of Flyweight: a stage, `check`, `report`, or any other with arguments of its own.

    Args:
        stage: name in `pipeline.graph.STAGES`, CHECK, REPORT, or another command.
        inputs: name of the stage's input -> task whose run it is.
        arguments: what follows the command, templated; None for those that take the settings of the run.
        command: what is run; the tests put a stand-in here.
    """

    operator_extra_links = (MlflowRunLink(),)
    template_fields = ("arguments",)
    ui_color = "#e8f1fb"

    def __init__(
        self,
        *,
        stage: str,
        inputs: Mapping[str, str] | None = None,
        arguments: Sequence[str] | None = None,
        command: Sequence[str] = COMMAND,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.inputs = dict(inputs or {})
        self.arguments = arguments
        self.command = list(command)
        self.mlflow_run_url = ""
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> str | None:
        """Run the command to its end and return the MLflow run id, if it has one."""
        with tempfile.TemporaryDirectory(prefix="flyweight-") as folder:
            file = Path(folder) / "result.json"
            code, tail = self._run([*self.command, *self._arguments(context, file)], context)
            result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if code == 0:
            return result.get("run_id")
        if code == 2:
            raise AirflowFailException(error_text(tail))
        if code == 3:
            context["ti"].xcom_push(key="return_value", value=result["run_id"])
            raise AirflowSkipException(result["reason"])
        raise RuntimeError(f"{self.stage} {_how(code)}. {error_text(tail)}")

    def on_kill(self) -> None:
        """Leave no process: closing its standard input tells the supervisor to end everything."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait(timeout=GRACE_SECONDS + 5)

    def _arguments(self, context: Any, result: Path) -> list[str]:
        if self.arguments is not None:
            return [self.stage, *self.arguments]
        conf = context["dag_run"].conf or {}
        arguments = [self.stage]
        if self.stage != REPORT:
            arguments += settings_arguments(conf)
        if self.stage != CHECK:
            arguments += ["--pipeline", context["run_id"]]
        if self.stage in STAGES:
            for name, task in self.inputs.items():
                arguments += ["--input", f"{name}={context['ti'].xcom_pull(task_ids=task)}"]
            arguments += ["--force"] if conf.get(FORCE) else []
            arguments += ["--result", str(result)]
        return arguments

    def _run(self, command: list[str], context: Any) -> tuple[int, list[str]]:
        """Run `command`, each of its lines into the task's log as it comes; return (exit code, last lines)."""
        self.log.info("$ %s", shlex.join(command))
        tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.services.supervise", *command],
            stdin=subprocess.PIPE,  # never written to: while it is open, the supervisor knows that we live
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | _tags(context),
            start_new_session=True,  # Airflow kills this task's group; the supervisor must outlive that to clean up
        )
        try:
            for line in self._process.stdout or ():
                tail.append(line.rstrip())
                self.log.info("%s", tail[-1])
                if match := _RUN_LINE.match(tail[-1]):
                    self.mlflow_run_url = match["url"]
                    context["ti"].xcom_push(key=MlflowRunLink.xcom_key, value=self.mlflow_run_url)
            return self._process.wait(), list(tail)
        finally:
            self.on_kill()


def error_text(lines: Iterable[str]) -> str:
    """Return the last error that a command printed: from its ``error:`` line on, or else its last five lines."""
    kept = list(lines)
    starts = [index for index, line in enumerate(kept) if _ERROR_LINE.match(line)]
    text = "\n".join(kept[starts[-1] if starts else -5 :])
    return _ERROR_LINE.sub("", text).strip() or "It printed nothing."


def _how(code: int) -> str:
    """Exit code as a shell gives it -> words."""
    if code > 128 and code - 128 in set(signal.Signals):
        return f"was ended by {signal.Signals(code - 128).name}"
    return f"ended with exit code {code}"


def _tags(context: Any) -> dict[str, str]:
    """What the MLflow run is to remember of this task, and lines that come when they are printed."""
    ti = context["ti"]
    return {
        "FLYWEIGHT_AIRFLOW_RUN_ID": context["run_id"],
        "FLYWEIGHT_AIRFLOW_RUN_URL": ti.log_url.partition("/tasks/")[0],
        "FLYWEIGHT_AIRFLOW_TRY_NUMBER": str(ti.try_number),
        "PYTHONUNBUFFERED": "1",
    }
