"""Our model.py outside Triton: what it does with a batch that fails."""

import types

import numpy as np
import pytest


@pytest.fixture
def model(load):
    return load("model")


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
    monkeypatch.setattr(model, "give", lambda name, array: array)

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
