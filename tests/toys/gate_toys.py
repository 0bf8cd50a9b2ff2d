"""Candidates as the gate sees them, with made-up speeds."""

from pipeline.evaluation.intervals import typical
from pipeline.records.evaluation import Measured
from pipeline.records.measures import Interval, Served


def measured(name, *, size=1000, macs=100, served=None, turns=(), made_by=None):
    """A candidate that answers `served` images per second through Triton, or what its turns say."""
    said = typical(turns, 0.95) if turns else None
    load = Served(
        throughput=said.value if said else served,
        interval=Interval(low=said.low, high=said.high) if said else None,
        turns=turns, p50_ms=5, p99_ms=10, requests=6000, failures=0,
    )  # fmt: skip
    return Measured(
        name=name, file=f"{name}/model.onnx", sha256="0" * 64, size_bytes=size, parameters=1, macs=macs,
        precision="float32", target="any", source=name, made_by=made_by, served={64: load},
    )  # fmt: skip
