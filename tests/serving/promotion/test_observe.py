import json

from serving_toys import golden

from pipeline.progress import events
from pipeline.serving.promotion import probes
from pipeline.serving.promotion.observe import observe
from pipeline.settings.serving import Promote


def watch(fake, what, before=None, **settings):
    return observe(fake, "proxy", 1, golden(what), before, Promote(**({"observe_s": 30.0} | settings)))


def test_a_good_version_is_watched_until_so_many_requests_are_answered(fake, served):
    before = probes.probe(fake, "proxy", golden(served), 8)
    figures, breach = watch(fake, served, before, observe_requests=20)
    assert breach is None
    assert (figures["requests"], figures["failed"], figures["mean_ms"]) == (20, 0, 1.0)
    assert (figures["probes"], figures["drift"]) == (20, 0.0)
    assert figures["p99_ms"] > 0 and figures["p99_ms_before"] > 0
    assert figures["seconds"] < 30


def test_time_ends_it_too(fake, served):
    figures, breach = watch(fake, served, observe_s=0.2)
    assert breach is None
    assert figures["seconds"] >= 0.2
    assert figures["requests"] == figures["probes"] > 0


def test_a_short_observation_reports_its_progress(fake, served, tmp_path, monkeypatch):
    """It used to report a total of 0, on which whoever showed the progress divided."""
    monkeypatch.setenv(events.ENVIRONMENT, str(tmp_path / "progress"))
    watch(fake, served, observe_s=0.2)
    assert [json.loads(line)["total"] for line in (tmp_path / "progress").read_text().splitlines()] == [0.2]


def test_no_time_is_no_look(fake, served):
    figures, breach = watch(fake, served, observe_s=0.0)
    assert (breach, figures["requests"], figures["probes"]) == (None, 0, 0)


def test_failures_of_others_count_though_the_probes_are_fine(fake, served):
    infer = type(fake).infer

    def others_fail(model, inputs, version=""):
        fake.counts.setdefault(1, [0, 0])[1] += 1
        return infer(fake, model, inputs, version)

    fake.infer = others_fail
    figures, breach = watch(fake, served)
    assert f"of {figures['requests']} requests failed, allowed is promote.max_error_rate = 0.01" in breach
    assert figures["seconds"] < 30  # it does not wait for the end


def test_what_was_counted_before_does_not_count(fake, served):
    fake.counts[1] = [10, 1000]
    figures, breach = watch(fake, served, observe_requests=10)
    assert (figures["requests"], breach) == (10, None)


def test_a_server_that_was_restarted_counts_from_zero(fake, served):
    fake.counts[1] = [1000, 0]
    served_now = iter([1000, 3, 12, 12, 12])
    fake.served = lambda model: {1: type(fake).served(fake, model)[1].__class__(next(served_now), 0, 0.0)}
    figures, _ = watch(fake, served, observe_requests=10)
    assert figures["requests"] == 12
