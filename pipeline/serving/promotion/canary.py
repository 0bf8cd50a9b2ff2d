"""Trying a candidate on live requests before it goes live: as a canary, which answers some of them, or as a shadow.

The champion's instances hand a share of their requests over (`relay`). Each of these is asked of the candidate and of a
*baseline*, the champion's own files under another name, in random order and over the same way: so both see the same
inputs, at the same time, with nothing else to do, and what is compared is the two models and not the load on them. (The
baseline beside the canary: https://netflixtechblog.com/automated-canary-analysis-at-netflix-with-kayenta-3260bc7acc69.)
The champion answers what the candidate could not, so no request fails by it.

Three limits are held to tests that may be looked at any time (`sequential`): the share of requests that the candidate
fails and the baseline does not, the share of rows that it puts into another class, and the share of requests for which
it takes longer than a multiple of the baseline's time, which says whether the medians of the times differ by more than
that. With the error rate alpha:

- The candidate passes when *every* limit is shown to be kept, each at alpha. One that breaks a limit passes with a chance
  of at most alpha: for that, the very limit that it breaks must look kept (Berger 1982,
  https://doi.org/10.1080/00401706.1982.10487790).
- It is withdrawn when *any* limit is shown to be broken, each at alpha / 3. One that keeps all of them is withdrawn for
  breaking one with a chance of at most alpha (Bonferroni).
- At the deadline it is withdrawn as undecided.
"""

from __future__ import annotations

import queue
import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PromotionError
from pipeline.machine import places
from pipeline.progress.events import report
from pipeline.serving.promotion.change import Change
from pipeline.serving.promotion.relay import Relay, Tensors, Wanted
from pipeline.serving.promotion.sequential import Limit
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.calls import Answer
from pipeline.serving.triton.control import is_reachable
from pipeline.serving.triton.errors import TritonError
from pipeline.settings.serving import Promote

_THREADS = 2
"""Requests that may be tried at once; more instances of the champion than that get one each. A share that is more than these can
do is cut short: what is tried costs the machine several times what a request does, and hundreds are enough."""
_COPIES_SECONDS = 10.0
"""In which the champion's instances, who look once a second, must have come."""
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """How a test on live requests ended."""

    verdict: Literal["passed", "broken", "undecided"]
    reason: str
    """Why it did not pass; empty where it did."""
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """What candidate and baseline had to say to one request."""

    failure: str | None
    """Why the candidate's answer was none, where the baseline had one."""
    other: float | None
    """Share of the rows that were put into another class; None where the answers are no classes."""
    seconds: float
    baseline_seconds: float


def check(change: Change, previous: int | None, config: Promote) -> None:
    """Raise `PromotionError` unless the champion's requests can be handed over, before anything is done."""
    if config.live_test == "none":
        return
    asked = f"promote.live_test is {config.live_test!r}, "
    if previous is None:
        raise PromotionError(
            f"{asked}but nothing serves as {change.model} yet whose requests could be tried: promote the first version "
            f"without it"
        )
    champion = repository.read_config(change.version_directory(previous) / repository.CONFIG_FILE)
    if champion.backend != "python":
        raise PromotionError(
            f"{asked}but version {previous} of {change.model} is served by the backend {champion.backend!r}, which hands no "
            f"requests over: only serving.backend = 'python' does. Promote without it, and compare both under load with "
            f"`flyweight load`; or let clients ask for a version by number"
        )
    if any(tensor.HasField("reshape") for tensor in (*champion.input, *champion.output)):
        raise PromotionError(
            f"{asked}but {change.model} has tensors of which a request has one number per row: Triton shows them to the model "
            f"in another shape than to clients. Promote without it"
        )
    if config.max_error_rate == 0.0 or config.live_max_other == 0.0:
        raise PromotionError(
            f"{asked}but promote.max_error_rate is {config.max_error_rate:g} and promote.live_max_other is "
            f"{config.live_max_other:g}: no number of requests shows that something never happens. Give each a share above 0"
        )


def run(change: Change, previous: int, config: Promote) -> Outcome:
    """Try the loaded candidate on the requests of version `previous`, which serves, until it is known what to do.

    Raises:
        PromotionError: the champion hands nothing over.
        TritonError: the server cannot be reached.
    """
    _load_baseline(change, previous)
    instances = _instances(change, previous)
    threads = max(_THREADS, instances)
    seen: queue.SimpleQueue[Pair] = queue.SimpleQueue()
    trial = _Trial(change, config, seen)
    wanted = Wanted(
        previous,
        config.live_share,
        config.live_test == "canary",
        threads // instances,
        config.live_timeout_ms / 1e3,
    )
    with Relay(change.model, wanted, trial.ask, threads) as relay:
        _wait_for_instances(relay, change, previous)
        start = change.control.served(change.model).get(previous)
        begin = time.monotonic()
        evaluator = Evaluator(config)
        while True:
            time.sleep(_LOOK_SECONDS)
            while not seen.empty():
                evaluator.add(seen.get())
            passed = time.monotonic() - begin
            report("tried requests", done=evaluator.count, total=max(config.live_requests, evaluator.count))
            _still_there(relay, change)
            if evaluator.verdict() != "undecided" or passed > config.live_s:
                break
        now = change.control.served(change.model).get(previous)
    requests = now.answered - start.answered if now and start else 0
    figures = {**evaluator.figures(), "kind": config.live_test, "share": config.live_share, "requests": requests}
    figures |= {"seconds": round(passed, 3)}
    return Outcome(evaluator.verdict(), evaluator.reason(passed), figures)


class Evaluator:
    """The three limits and what is known of them.

    Args:
        config: limits, error rate and least number of requests.
    """

    def __init__(self, config: Promote) -> None:
        self._config = config
        self._failed = Limit(config.max_error_rate)
        self._other = Limit(config.live_max_other)
        self._slow = Limit(0.5)
        self._failures: Counter[str] = Counter()
        self._seconds: list[float] = []
        self._baseline_seconds: list[float] = []

    @property
    def count(self) -> int:
        """Of the requests so far."""
        return self._failed.count

    def add(self, pair: Pair) -> None:
        """Take one request into account."""
        self._failed.add(float(pair.failure is not None))
        if pair.failure is not None:
            self._failures[pair.failure] += 1
            return
        if pair.other is not None:
            self._other.add(pair.other)
        self._slow.add(float(pair.seconds > self._config.live_max_latency_ratio * pair.baseline_seconds))
        self._seconds.append(pair.seconds)
        self._baseline_seconds.append(pair.baseline_seconds)

    def verdict(self) -> Literal["passed", "broken", "undecided"]:
        """Return what is shown so far."""
        if any(limit.broken(self._config.live_alpha / 3) for limit in self._limits()):
            return "broken"
        kept = all(limit.kept(self._config.live_alpha) for limit in self._limits())
        return "passed" if kept and self.count >= self._config.live_requests else "undecided"

    def reason(self, seconds: float) -> str:
        """Return why it did not pass, after `seconds`; empty where it did."""
        verdict, alpha = self.verdict(), self._config.live_alpha
        if verdict == "passed":
            return ""
        said = self._sentences()
        if verdict == "broken":
            broken = [said[limit] for limit in self._limits() if limit.broken(alpha / 3)]
            return f"{'; '.join(broken)} (of {self.count} live requests; wrong with a chance of at most {alpha:g})"
        open_ends = [said[limit] for limit in self._limits() if not limit.kept(alpha)]
        few = f"only {self.count} of promote.live_requests = {self._config.live_requests} live requests came"
        missing = open_ends or [few]
        return (
            f"undecided after promote.live_s = {seconds:.0f} s and {self.count} live requests: {'; '.join(missing)}. Give it "
            f"more time or a larger share"
        )

    def figures(self) -> dict[str, Any]:
        """Return what was seen, for the ledger."""
        found: dict[str, Any] = {"tried": self.count, "failed": sum(self._failures.values())}
        if self._other.count:
            found["other"] = round(self._other.mean, 4)
        if self._seconds:
            found["slower"] = round(self._slow.mean, 4)
            for name, values in (("", self._seconds), ("_before", self._baseline_seconds)):
                found[f"p50_ms{name}"] = round(1e3 * float(np.quantile(values, 0.5)), 3)
                found[f"p99_ms{name}"] = round(1e3 * float(np.quantile(values, 0.99)), 3)
        return found

    def _limits(self) -> tuple[Limit, ...]:
        """The limits that say something: answers that are no classes have none in common."""
        return (self._failed, self._slow, *([self._other] if self._other.count or not self._slow.count else []))

    def _sentences(self) -> dict[Limit, str]:
        config = self._config
        whys = ", ".join(f"{count} {why}" for why, count in self._failures.most_common(3))
        return {
            self._failed: f"{self._failed.total:.0f} failed{f' ({whys})' if whys else ''}, allowed is a share of "
            f"promote.max_error_rate = {config.max_error_rate:g}",
            self._other: f"{self._other.mean:.1%} of the answers are another class than the champion's, allowed is "
            f"promote.live_max_other = {config.live_max_other:g}",
            self._slow: f"{self._slow.mean:.0%} took longer than promote.live_max_latency_ratio = "
            f"{config.live_max_latency_ratio:g} times the champion's time, allowed is half of them",
        }


class _Trial:
    """Asks candidate and baseline the same thing; called from several threads."""

    def __init__(self, change: Change, config: Promote, seen: queue.SimpleQueue[Pair]) -> None:
        self._change, self._baseline, self._seen = change, baseline(change), seen
        self._answers = config.live_test == "canary"
        self._timeout = config.live_timeout_ms / 1e3

    def ask(self, feed: Tensors) -> Tensors:
        """Return what the candidate answers where it is a canary and its answer is one."""
        order = [self._change.candidate, self._baseline]
        random.shuffle(order)
        said = {model: self._one(model, feed) for model in order}
        (answer, seconds), (expected, baseline_seconds) = said[self._change.candidate], said[self._baseline]
        if isinstance(expected, str):  # the champion has no answer either: nothing can be compared
            return {}
        failure = self._failure(answer, seconds, expected)
        other = None if failure or isinstance(answer, str) else _other(expected.outputs, answer.outputs)
        self._seen.put(Pair(failure, other, seconds, baseline_seconds))
        return {} if failure or isinstance(answer, str) or not self._answers else answer.outputs

    def _one(self, model: str, feed: Tensors) -> tuple[Answer | str, float]:
        begin = time.perf_counter()
        try:
            answer: Answer | str = self._change.control.infer(model, feed)
        except TritonError as error:
            answer = error.status
        return answer, time.perf_counter() - begin

    def _failure(self, answer: Answer | str, seconds: float, expected: Answer) -> str | None:
        """Return why the candidate's answer is none, or None. What is late is still waited for: Triton 2.51 may crash when a
        call is broken off (https://github.com/triton-inference-server/server/issues/8034)."""
        if isinstance(answer, str):
            return answer
        if seconds > self._timeout:
            return "later than promote.live_timeout_ms"
        return _fault(expected.outputs, answer.outputs)


def _fault(expected: Tensors, given: Tensors) -> str | None:
    """Return why `given` cannot be an answer where `expected` is one, or None."""
    for name, wanted in expected.items():
        got = given.get(name)
        if got is None or got.shape != wanted.shape or got.dtype != wanted.dtype:
            return "of another shape"
        if _finite(wanted) and not _finite(got):
            return "not finite"
    return None


def _finite(array: NDArray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _other(expected: Tensors, given: Tensors) -> float | None:
    """Return the share of rows of which the first output names another class; None where it names none."""
    name = next(iter(expected))
    if expected[name].ndim != 2 or expected[name].shape[1] < 2 or not len(expected[name]):
        return None
    return float(np.mean(expected[name].argmax(axis=1) != given[name].argmax(axis=1)))


def baseline(change: Change) -> str:
    """Return the name of the baseline; it begins as the candidate's does, and whoever removes that removes it too."""
    return f"{change.candidate}_base"


def _load_baseline(change: Change, previous: int) -> None:
    """Serve the champion's own files under another name."""
    name = baseline(change)
    source = change.version_directory(previous)
    with disk.scratch() as room:
        made = room / name
        shutil.copytree(source, made / source.name)
        (made / repository.CONFIG_FILE).write_text(
            repository.with_versions(source / repository.CONFIG_FILE, [previous]), encoding="utf-8"
        )
        shutil.copyfile(source / repository.LABELS_FILE, made / repository.LABELS_FILE)
        disk.rename(made, places.triton_repository() / name)
    change.control.load(name, change.load_timeout)


def _instances(change: Change, version: int) -> int:
    """Return how many instances of the champion there are."""
    config = repository.read_config(change.version_directory(version) / repository.CONFIG_FILE)
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)


def _wait_for_instances(relay: Relay, change: Change, version: int) -> None:
    deadline = time.monotonic() + _COPIES_SECONDS
    while not relay.instances:
        _still_there(relay, change)
        if time.monotonic() > deadline:
            raise PromotionError(
                f"no instance of {change.model} version {version} hands its requests over: it was promoted by a Flyweight that "
                f"could not, or its server does not see {places.serving()}. Promote without a live test"
            )
        time.sleep(_LOOK_SECONDS)


def _still_there(relay: Relay, change: Change) -> None:
    """Raise what ended a thread, or `TritonError` where the server cannot be reached."""
    if relay.error is not None:
        raise relay.error
    if not is_reachable(change.control):
        raise TritonError(f"Triton went away while {change.model} was tried on live requests", "UNAVAILABLE")
