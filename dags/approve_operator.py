"""A person's word before anything goes live: Airflow's approval operator, asked for by the setting ``promote.approval``.

Off, the task passes at once. On, it shows the verdict and the table of all candidates under *Required Actions* and waits,
without holding a worker, until somebody approves or rejects. Rejected, the run fails and what serves is not touched.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowFailException

from pipeline.settings import parse
from pipeline.settings.form import settings_arguments

APPROVE = "approve"


class ApproveOperator(ApprovalOperator):
    """Waits for an approval where the settings of the run ask for one."""

    ui_color = "#fdf3d8"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(subject="Shall the winner go live?", fail_on_reject=True, **kwargs)

    def execute(self, context: Any) -> Any:
        """Show the evidence and wait, or pass."""
        if not wanted(context["dag_run"].conf or {}):
            self.log.info("promote.approval is off: nobody is asked")
            return None
        self.body = evidence_text(context["run_id"])
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Go on where it was approved. A rejection is final: another try would ask the same."""
        try:
            return super().execute_complete(context, event)
        except HITLRejectException as error:
            who = (event.get("responded_by_user") or {}).get("name", "somebody")
            raise AirflowFailException(f"{who} rejected the promotion; what served before serves on") from error


def wanted(conf: dict[str, Any]) -> bool:
    """Return ``promote.approval`` as the recipe and the form of the run have it."""
    of_promote = {
        key: value for key, value in conf.items() if key in {"recipe", "promote"} or key.startswith("promote.")
    }
    _, recipe, *pairs = settings_arguments(of_promote)
    return parse.load(recipe, parse.parse_overrides(tuple(pairs[1::2]))).promote.approval


def evidence_text(pipeline: str) -> str:
    """Return verdict and table of a pipeline run as Markdown, and where the whole evidence is."""
    from pipeline.report import page
    from pipeline.tracking import evidence

    found = evidence.gather(pipeline)
    return f"{page.summary(found)}\n\n[The pipeline's run in MLflow]({found['parent_url']})"
