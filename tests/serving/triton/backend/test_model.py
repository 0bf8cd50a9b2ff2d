"""Our model.py outside Triton: what it does with a batch that fails, and when it refuses requests."""

import importlib.util
import sys
import threading
import types

import numpy as np
import pytest

from pipeline.serving.triton.repository import BACKEND

METRICS = b"""# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
nv_inference_pending_request_count{model="m",version="1"} %d
nv_inference_pending_request_count{model="m",version="2"} 999
nv_inference_pending_request_count{model="mm",version="1"} 999
nv_inference_request_success{model="m",version="1"} %d
nv_inference_queue_duration_us{model="m",version="1"} %s
"""


@pytest.fixture
def model(monkeypatch):
    """The module, with a stand-in for what Triton gives to it."""

    class TritonError(Exception):
        UNAVAILABLE = "unavailable"

    utils = types.ModuleType("triton_python_backend_utils")
    utils.TritonError = TritonError
    utils.InferenceResponse = lambda tensors=(), error=None: error or list(tensors)
    utils.Logger = types.SimpleNamespace(log_warn=lambda text: None)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    spec = importlib.util.spec_from_file_location("flyweight_model", BACKEND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Request:
    def __init__(self, values):
        self.values = np.asarray(values, np.float32)

    def parameters(self):
        return {}


class Session:
    """Doubles its input, and fails on a batch with a negative number."""

    def __init__(self, rows=None):
        self.batches, self.rows = [], rows

    def run(self, outputs, feeds):
        (batch,) = feeds.values()
        self.batches.append(len(batch))
        if (batch < 0).any():
            raise ValueError("negative")
        return [batch * 2 if self.rows is None else np.zeros(self.rows)]


@pytest.fixture
def backend(model, monkeypatch):
    monkeypatch.setattr(model, "_give", lambda name, array: array)

    def make(**session):
        made = model.TritonPythonModel()
        made.session, made.inputs, made.outputs = Session(**session), ["x"], ["y"]
        made.batched, made.gate, made.bare = True, None, set()
        made.sampler = types.SimpleNamespace(share=0.0)
        made._feeds = lambda requests: [[request.values for request in requests]]
        return made

    return make


def test_a_batch_is_one_run(backend):
    one = backend()
    answers = one.execute([Request([1, 2]), Request([3])])
    assert [answer[0].tolist() for answer in answers] == [[2, 4], [6]]
    assert one.session.batches == [3]


def test_only_the_culprit_of_a_batch_gets_its_error(backend):
    one = backend()
    answers = one.execute([Request([number if number != 11 else -1]) for number in range(16)])
    assert str(answers.pop(11)) == "ValueError: negative"
    assert [answer[0][0] for answer in answers] == [2.0 * number for number in range(16) if number != 11]
    assert len(one.session.batches) == 1 + 2 * 4  # halves of halves, not sixteen runs


def test_an_output_that_has_no_batch_axis_mixes_nobody_up(backend):
    answers = backend(rows=7).execute([Request([1]), Request([2])])
    assert [str(answer) for answer in answers] == [
        "ValueError: output 'y' has 7 rows for a batch of 1: its first axis is no batch"
    ] * 2


def gate(model, most=0, longest=0.0, copies=1):
    return model.Gate("m", "1", most, longest, copies)


def metrics(waiting, succeeded=0, queued="0"):
    return METRICS % (waiting, succeeded, queued.encode())


def test_what_is_beyond_the_limit_is_shared_by_the_copies(model):
    assert gate(model, most=10)._excess(metrics(10)) == 0
    assert gate(model, most=10)._excess(metrics(35)) == 25
    assert gate(model, most=10, copies=2)._excess(metrics(35)) == 13
    assert gate(model, most=10)._excess(b"nothing of ours") == 0


def test_waiting_longer_than_allowed_on_average_refuses_what_made_it_so(model):
    one = gate(model, longest=0.05)
    assert one._excess(metrics(100, succeeded=10, queued="0")) == 0  # there is nothing yet to compare with
    assert one._excess(metrics(100, succeeded=30, queued="800000")) == 0  # 40 ms each
    assert one._excess(metrics(100, succeeded=40, queued="1.8e+06")) == 50  # 100 ms each: half of them too many
    assert one._excess(metrics(100, succeeded=40, queued="1.8e+06")) == 0  # nobody was answered since


def test_requests_are_refused_until_the_excess_is_gone(model, monkeypatch):
    monkeypatch.setattr(model.time, "monotonic", lambda: 100.0)
    one = gate(model, most=10)
    one._left = 20
    assert [one.refuses(8), one.refuses(8), one.refuses(8), one.refuses(8)] == [True, True, True, False]
    assert "overloaded: more than 10 requests wait" in str(one.refusal())


def test_a_rest_says_that_nobody_waits(model):
    one = gate(model, most=10)
    one._left = 20
    one._answered -= 1.0
    assert not one.refuses(1)
    assert one._left == 0


def test_the_metrics_are_read_only_where_there_is_hardly_any_rest(model, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(model.time, "monotonic", lambda: now[0])
    one = gate(model, most=10)
    monkeypatch.setattr(one, "_look", threading.Event())  # not the one that its thread waits for
    for rest, work in ((0.009, 0.001), (0.001, 0.009), (0.009, 0.001)):
        for _ in range(20):
            now[0] += rest
            one.refuses(1)
            now[0] += work
            one.answered()
        assert one._look.is_set() == (work > rest)
