"""Watching a version after it went live: failures by Triton's own count, p99 and drift by probes; for a set time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from pipeline.progress.events import report
from pipeline.serving.promotion import probes
from pipeline.serving.promotion.probes import Probes
from pipeline.serving.triton.calls import Served
from pipeline.serving.triton.control import Control
from pipeline.serving.triton.golden import Golden
from pipeline.settings.serving import Promote

_LOOK_SECONDS = 1.0
_NOTHING = Served(0, 0, 0.0)


def observe(
    control: Control, model: str, version: int, golden: Golden, before: Probes | None, config: Promote
) -> tuple[Mapping[str, Any], str | None]:
    """Watch `version` for ``observe_s`` seconds or ``observe_requests`` answers; return (figures, breach or None).

    It ends at the first breach. There is a look every second; the share of false alarms that is allowed over all looks
    is spent among them (look k gets 6 / (pi k)^2 of it), so that looking often does not find what is not there.

    Args:
        control: the server.
        model: its name; probes go there unpinned, as clients' requests do.
        version: what answers.
        golden: the inputs that are asked about.
        before: what the same inputs met with the version before, right before the change.
        config: how long, and the limits.

    Raises `TritonError` where the server cannot be reached.
    """
    seen, limit = Probes(), probes.limits(config, before)
    start = control.served(model).get(version, _NOTHING)
    begin, looks, number, found = time.monotonic(), 0, 0, None
    live = _NOTHING
    while found is None and (passed := time.monotonic() - begin) < config.observe_s:
        if config.observe_requests is not None and live.answered + live.failed >= config.observe_requests:
            break
        seen.send(control, model, golden, number % len(golden))
        number += 1
        time.sleep(min(0.05, max(0.005, seen.latencies_ms[-1] / 1e3 if seen.latencies_ms else 0.05)))
        if passed > looks * _LOOK_SECONDS or config.observe_requests is not None:
            live = _since(start, control.served(model).get(version, _NOTHING))
        if passed > looks * _LOOK_SECONDS:
            looks += 1
            found = _breach(seen, before, limit, live, _spend(looks))
            report("observed seconds", done=round(passed, 1), total=config.observe_s, step=looks)
    live = _since(start, control.served(model).get(version, _NOTHING))
    found = found or (_breach(seen, before, limit, live, _spend(looks + 1)) if number else None)
    mean = {"mean_ms": round(1e3 * live.seconds / live.answered, 3)} if live.answered else {}
    figures = {"requests": live.answered + live.failed, "failed": live.failed, **mean, **probes.evidence(seen, before)}
    return {**figures, "seconds": round(time.monotonic() - begin, 3)}, found


def _breach(seen: Probes, before: Probes | None, limit: probes.Limits, live: Served, alpha: float) -> str | None:
    total = live.answered + live.failed
    if probes.too_many(live.failed, total, limit.error_rate, alpha):
        return f"{live.failed} of {total} requests failed, allowed is promote.max_error_rate = {limit.error_rate:g}"
    return probes.breach(seen, before, limit, alpha)


def _spend(look: int) -> float:
    return probes.ALPHA * 6.0 / (math.pi * look) ** 2


def _since(start: Served, now: Served) -> Served:
    if now.answered < start.answered:  # the server was restarted in between and counts from zero again
        return now
    return Served(now.answered - start.answered, now.failed - start.failed, now.seconds - start.seconds)
