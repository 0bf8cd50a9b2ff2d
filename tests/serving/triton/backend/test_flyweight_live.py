"""What is handed over of the live requests, and that it depends on nobody: the `Sampler` with a real `Relay`."""

import math
import random
import threading
import time
import types

import numpy as np
import pytest

from pipeline.serving.promotion.relay import Relay, Wanted, socket_path


@pytest.fixture
def live(load, monkeypatch):
    module = load("flyweight_live")
    monkeypatch.setattr(module.pb_utils, "InferenceResponse", lambda tensors: dict(tensors))
    monkeypatch.setattr(module, "give", lambda name, array: (name, array))
    monkeypatch.setattr(module.Sampler, "_LOOK_SECONDS", 0.01)
    return module


class Request:
    """A request whose answer may come later."""

    def __init__(self):
        self.answers, self.answered = [], threading.Event()

    def get_response_sender(self):
        return self

    def send(self, response, flags):
        assert flags == 1
        self.answers.append(response)
        self.answered.set()


def champion(feed):
    return {"y": feed["x"] * 2}


@pytest.fixture
def sampler(live, home):
    return live.Sampler(socket_path("proxy").parent, "proxy", "3", champion)


def wanted(**changed):
    return Wanted(**{"version": 3, "share": 1.0, "answers": True, "maximum": 4, "patience": 5.0, **changed})


def wait(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def hand_over(sampler, number=1.0):
    request = Request()
    return request, sampler.takes(request, {"x": np.array([[number]], np.float32)})


def answer_of(request):
    assert request.answered.wait(30)
    (answer,) = request.answers
    return answer["y"].tolist()


def test_a_canarys_request_gets_the_candidates_answer(sampler):
    with Relay("proxy", wanted(), lambda feed: {"y": feed["x"] * 3}, 2):
        wait(lambda: sampler.share)
        requests = [hand_over(sampler, float(number)) for number in range(20)]
        assert all(taken for _, taken in requests)
        assert [answer_of(request) for request, _ in requests] == [[[3.0 * number]] for number in range(20)]
    wait(lambda: not sampler.share)


def test_a_shadow_gets_copies_and_answers_nothing(sampler):
    seen = []
    with Relay("proxy", wanted(answers=False), lambda feed: seen.append(feed["x"].item()) or {}, 1):
        wait(lambda: sampler.share)
        request, taken = hand_over(sampler, 7.0)
        assert not taken
        wait(lambda: seen == [7.0])
        wait(lambda: not sampler._out)
    assert request.answers == []


def test_what_nobody_has_an_answer_for_is_answered_here(sampler):
    with Relay("proxy", wanted(), lambda feed: {}, 1):
        wait(lambda: sampler.share)
        assert answer_of(hand_over(sampler)[0]) == [[2.0]]


def test_what_is_late_is_answered_here_and_holds_its_place_until_it_is_heard_of(sampler):
    end = threading.Event()
    with Relay("proxy", wanted(patience=0.1, maximum=2), lambda feed: end.wait(30) and {"y": feed["x"] * 3}, 2):
        wait(lambda: sampler.share)
        requests = [hand_over(sampler)[0] for _ in range(2)]
        assert [answer_of(request) for request in requests] == [[[2.0]]] * 2
        assert not sampler.wants()  # whoever hangs delays no more than these two
        end.set()
        wait(lambda: sampler.wants())
        assert [len(request.answers) for request in requests] == [1, 1]


def test_what_is_out_when_the_other_side_dies_is_answered_here(sampler):
    begun, end = threading.Event(), threading.Event()
    relay = Relay("proxy", wanted(), lambda feed: (begun.set(), end.wait(30), {})[-1], 1)
    with relay:
        wait(lambda: sampler.share)
        request, _ = hand_over(sampler)
        assert begun.wait(30)
        for connection in relay._connections:  # as the end of its process does
            connection.shutdown(2)
        assert answer_of(request) == [[2.0]]
        end.set()
    wait(lambda: not sampler.share)
    assert not hand_over(sampler)[1]


def test_what_the_other_side_says_wrongly_costs_no_request(sampler, capsys):
    relay = Relay("proxy", wanted(), lambda feed: {}, 1)
    with relay:
        wait(lambda: sampler.share)
        request, _ = hand_over(sampler)
        assert answer_of(request) == [[2.0]]
        relay._connections[0].sendall(b"\x02\0\0\0" + bytes(8) + b"no")
        wait(lambda: not sampler.share)
    assert "live requests are no longer handed over: JSONDecodeError" in capsys.readouterr().out


def test_another_version_is_asked_for_nothing(sampler):
    with Relay("proxy", wanted(version=4), lambda feed: {}, 1) as relay:
        wait(lambda: relay._connections)
        time.sleep(0.05)
        assert (sampler.share, relay.instances) == (0.0, 0)


def test_what_a_killed_promoter_left_is_nobody(sampler):
    path = socket_path("proxy")
    with Relay("proxy", wanted(), lambda feed: {}, 1):
        wait(lambda: sampler.share)
        path.rename(path.with_suffix(".kept"))
    path.with_suffix(".kept").rename(path)
    wait(lambda: not sampler.share)
    request, taken = hand_over(sampler)
    assert not taken and request.answers == [] and path.exists()
    with Relay("proxy", wanted(), lambda feed: {"y": feed["x"] * 3}, 1):
        wait(lambda: sampler.share)  # and its thread lives
        assert answer_of(hand_over(sampler)[0]) == [[3.0]]


def test_the_path_may_be_longer_than_a_socket_allows(live, home, monkeypatch):
    monkeypatch.setenv("FLYWEIGHT_TRITON_REPOSITORY", str(home / ("long" * 40) / "triton_repo"))
    path = socket_path("proxy")
    assert len(str(path)) > 108
    sampler = live.Sampler(path.parent, "proxy", "3", champion)
    with Relay("proxy", wanted(), lambda feed: {"y": feed["x"] * 3}, 1):
        wait(lambda: sampler.share)
        assert answer_of(hand_over(sampler)[0]) == [[3.0]]


def test_the_share_is_what_was_asked_for(sampler):
    random.seed(17)
    with Relay("proxy", wanted(share=0.05), lambda feed: {}, 1):
        wait(lambda: sampler.share)
        picked = sum(sampler.wants() for _ in range(20_000))
    assert abs(picked - 1000) < 4 * math.sqrt(20_000 * 0.05 * 0.95)
    wait(lambda: not sampler.share)
    assert not any(sampler.wants() for _ in range(1000))


def test_a_batch_keeps_its_order_whoever_answers(load, sampler, monkeypatch):
    model = load("model")
    monkeypatch.setattr(model, "give", lambda name, array: (name, array))
    made = model.TritonPythonModel()
    made.sampler, made.batched = sampler, True
    made._feed = lambda request: request
    made._together = lambda requests: [f"answer {request.number}" for request in requests]
    sampler.wants = lambda: True
    sampler.takes = lambda request, feed: request.number % 3 == 0
    sampler.share = 0.5
    requests = [types.SimpleNamespace(number=n, parameters=dict) for n in range(5)]
    assert made._answers(requests) == [None, "answer 1", "answer 2", None, "answer 4"]
    asks_for_the_hash = types.SimpleNamespace(number=0, parameters=lambda: {"attest": True})
    assert made._answers([asks_for_the_hash]) == ["answer 0"]
    assert made._answers([requests[0]]) == [None]
    sampler.share = 0.0
