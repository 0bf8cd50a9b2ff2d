import itertools
import math

import pytest

from pipeline.settings.training import Fit
from pipeline.training.schedule import learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_learning_rate_rises_to_lr_and_then_follows_the_schedule(schedule):
    fit = Fit(lr=0.4, warmup=0.25, schedule=schedule)
    rates = [learning_rate(fit, step, 1000) for step in range(1001)]
    assert all(a < b for a, b in itertools.pairwise(rates[:251])) and 0 < rates[0] < 0.002
    assert rates[250] == max(rates) == pytest.approx(0.4)
    middle = {"cosine": 0.2, "onecycle": 0.2, "constant": 0.4}[schedule]
    quarter = {"cosine": 0.2 * (1 + math.cos(math.pi / 4)), "onecycle": 0.3, "constant": 0.4}[schedule]
    assert rates[625] == pytest.approx(middle)
    assert rates[437] == pytest.approx(quarter, rel=2e-3)
    assert rates[1000] == pytest.approx(0.4 if schedule == "constant" else 0.0)


def test_learning_rate_without_warmup_begins_at_lr():
    assert learning_rate(Fit(lr=0.1, warmup=0.0), 0, 10) == 0.1
