"""When the backend refuses requests."""

import threading

import pytest

METRICS = b"""# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
nv_inference_pending_request_count{model="m",version="1"} %d
nv_inference_pending_request_count{model="m",version="2"} 999
nv_inference_pending_request_count{model="mm",version="1"} 999
nv_inference_request_success{model="m",version="1"} %d
nv_inference_queue_duration_us{model="m",version="1"} %s
"""


@pytest.fixture
def model(load):
    return load("flyweight_gate")


def gate(model, maximum=0, longest=0.0, instances=1):
    return model.Gate("m", "1", maximum, longest, instances)


def metrics(waiting, succeeded=0, queued="0"):
    return METRICS % (waiting, succeeded, queued.encode())


def test_what_is_beyond_the_limit_is_shared_by_the_instances(model):
    assert gate(model, maximum=10)._excess(metrics(10)) == 0
    assert gate(model, maximum=10)._excess(metrics(35)) == 25
    assert gate(model, maximum=10, instances=2)._excess(metrics(35)) == 13
    assert gate(model, maximum=10)._excess(b"nothing of ours") == 0


def test_waiting_longer_than_allowed_on_average_refuses_what_made_it_so(model):
    one = gate(model, longest=0.05)
    assert one._excess(metrics(100, succeeded=10, queued="0")) == 0  # there is nothing yet to compare with
    assert one._excess(metrics(100, succeeded=30, queued="800000")) == 0  # 40 ms each
    assert one._excess(metrics(100, succeeded=40, queued="1.8e+06")) == 50  # 100 ms each: half of them too many
    assert one._excess(metrics(100, succeeded=40, queued="1.8e+06")) == 0  # nobody was answered since


def test_requests_are_refused_until_the_excess_is_gone(model, monkeypatch):
    monkeypatch.setattr(model.time, "monotonic", lambda: 100.0)
    one = gate(model, maximum=10)
    one._left = 20
    assert [one.refuses(8), one.refuses(8), one.refuses(8), one.refuses(8)] == [True, True, True, False]
    assert "overloaded: more than 10 requests wait" in str(one.refusal())


def test_what_leaves_the_queue_while_its_length_is_read_is_not_refused_again(model, monkeypatch):
    monkeypatch.setattr(model.time, "monotonic", lambda: 100.0)
    one = gate(model, maximum=10)
    one._left = 20

    def read(port):
        waiting = metrics(35)
        assert one.refuses(15)
        return waiting

    monkeypatch.setattr(model, "_metrics", read)
    one._measure(8002)
    assert one._left == 35 - 10 - 15


def test_a_rest_says_that_nobody_waits(model):
    one = gate(model, maximum=10)
    one._left = 20
    one._answered -= 1.0
    assert not one.refuses(1)
    assert one._left == 0


def test_the_metrics_are_read_only_where_there_is_hardly_any_rest(model, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(model.time, "monotonic", lambda: now[0])
    one = gate(model, maximum=10)
    monkeypatch.setattr(one, "_look", threading.Event())  # not the one that its thread waits for
    for rest, work in ((0.009, 0.001), (0.001, 0.009), (0.009, 0.001)):
        for _ in range(20):
            now[0] += rest
            one.refuses(1)
            now[0] += work
            one.answered()
        assert one._look.is_set() == (work > rest)
