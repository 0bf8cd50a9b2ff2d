"""One whole, made-up pipeline run: invented answers, real statistics and a real verdict over them."""

import numpy as np
import pytest

from pipeline.evaluation import gate
from pipeline.evaluation.quality import quality
from pipeline.records.evaluation import Evaluation, Host, Measured
from pipeline.records.measures import Interval, Offline, Served, ServedParity
from pipeline.settings.gate import Budget

LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# name: (noise of its answers, bytes, parameters, MACs, images/s offline, images/s through Triton, precision, target)
CANDIDATES = {
    "teacher": (0.0, 1_245_000, 309_000, 30_600_000, 820.0, 590.0, "float32", "any"),
    "student": (0.9, 321_000, 78_000, 7_750_000, 3400.0, 1900.0, "float32", "any"),
    "pruned": (1.0, 196_000, 46_500, 4_600_000, 5100.0, 2500.0, "float32", "any"),
    "int8": (1.05, 68_000, 46_500, 4_600_000, 11_800.0, 3300.0, "int8", "cpu"),
    "int8_tensorrt": (1.1, 71_000, 46_500, 4_600_000, 0.0, 0.0, "int8", "tensorrt"),
}
# name: (what it was made from, the stage that made it)
MADE = {
    "student": ("teacher", "distill"),
    "pruned": ("student", "prune"),
    "int8": ("pruned", "quantize"),
    "int8_tensorrt": ("pruned", "quantize"),
}


def split_answers(images, seed):
    """(labels, candidate -> logits): a teacher that is right on about 92 %, and others that are noisier."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, images)
    base = rng.normal(size=(images, 10)).astype(np.float32) * 1.6
    base[np.arange(images), labels] += 5.6
    noise = rng.normal(size=(images, 10)).astype(np.float32)
    logits = {
        name: base + row[0] * 0.6 * noise + (row[0] and 0.15 * rng.normal(size=(images, 10)).astype(np.float32))
        for name, row in CANDIDATES.items()
    }
    return labels, logits


def measured(name, validation, test):
    _, size, parameters, macs, offline, served, precision, target = CANDIDATES[name]

    def look(split):
        labels, logits = split
        teacher = None if name == "teacher" else logits["teacher"]
        return quality(labels, logits[name], teacher, confidence=0.95, resamples=500, seed=1)

    def load(level):
        at = served * (0.35 if level == 1 else 0.95 if level == 16 else 1.0)
        spread = Interval(low=0.95 * at, high=1.06 * at)
        times = {"p50_ms": 900 * level / at, "p99_ms": 1900 * level / at}
        return Served(throughput=at, interval=spread, requests=int(2 * at), failures=0, **times)

    def time(batch):
        at = offline * (0.7 if batch == 1 else 1.0)
        return Offline(images_per_second=at, p50_ms=1000 * batch / at, p99_ms=1300 * batch / at, calls=500)

    parent, made_by = MADE.get(name, (None, "train"))
    return Measured(
        name=name, parent=parent, made_by=made_by,
        file=f"{name}/model.onnx", sha256=f"{len(name):064x}", size_bytes=size, parameters=parameters,
        macs=macs, precision=precision, target=target, source="pruned" if name.startswith("int8") else name,
        validation=look(validation), test=look(test),
        offline={batch: time(batch) for batch in (1, 64)} if offline else {},
        served={level: load(level) for level in (1, 16, 64)} if served else {},
        served_parity=ServedParity(images=64, max_difference=1e-6, differing=0) if served else None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def evaluation():
    validation, test = split_answers(1000, 1), split_answers(2000, 2)
    host = Host(
        cpu="AMD EPYC 9B14", cores=2, flags=("avx2", "avx512_vnni"), system="Linux 6.1", python="3.11.2",
        onnxruntime="1.31.1", torch="2.13.0", triton="2.51.0",
    )  # fmt: skip
    return Evaluation(
        labels=LABELS,
        confidence=0.95,
        candidates=tuple(measured(name, validation, test) for name in CANDIDATES),
        host=host,
        engines={"skipped": "no GPU and no ahead-of-time builder on this machine"},
    )


@pytest.fixture(scope="session")
def verdict(evaluation):
    budget = Budget(accuracy_drop=0.025, size_ratio=8, speedup=8, served_speedup=2.5)
    return gate.decide(evaluation.teacher, evaluation.candidates, budget, 0.95)


@pytest.fixture(scope="session")
def evidence(evaluation, verdict):
    """What `evidence.gather` returns of a run that went well."""
    stages = [
        ("prepare_data", "finished", "", 3.1), ("validate", "reused", "run 4f1c… had the same settings", 0.0),
        ("train", "finished", "", 312.0), ("distill", "finished", "", 121.0), ("prune", "finished", "", 63.0),
        ("quantize", "finished", "", 9.4), ("export_onnx", "finished", "", 14.2),
        ("build_tensorrt", "skipped", "no GPU and no ahead-of-time builder on this machine", 0.4),
        ("evaluate", "finished", "", 68.0), ("promote", "finished", "", 4.0), ("verify_served", "finished", "", 2.0),
    ]  # fmt: skip
    url = "http://127.0.0.1:5000/#/experiments/1/runs/"
    curve = [{"epoch": e, "train_loss": 1 / e, "validation_accuracy": 0.93 - 0.2 / e} for e in range(1, 6)]
    return {
        "pipeline": "demo-20261104-101500",
        "parent_url": url + "0" * 32,
        "begun": "2026-11-04 10:15:00",
        "verdict": verdict.model_dump(mode="json"),
        "evaluation": evaluation.model_dump(mode="json"),
        "history": {"train": curve, "distill": curve[:4], "prune": curve[2:4]},
        "baseline": {"distilled": 0.914, "alone": 0.9206, "kept": "alone"},
        "quantization": {
            "serve": "int8",
            "valid_on": "any CPU",
            "proof": {"fused_integer_ops": 12, "sentence": "int8 is faster than float here: 2.40x at batch 64."},
        },
        "engines": {"skipped": "no GPU and no ahead-of-time builder on this machine"},
        "promotion": {"model": "proxy", "version": 3, "candidate": "int8", "sha256": "ab" * 32, "previous_version": 2},
        "served": {"model": "proxy", "version": 3, "accuracy": 0.914, "images": 500, "agreement": 1.0},
        "data": {"name": "fashion_mnist", "counts": {"train": 55000, "validation": 5000, "test": 10000}},
        "settings": {"seed": "17", "budget.accuracy_drop": "0.025", "train.fit.epochs": "4"},
        "stages": [
            {"stage": s, "status": how, "run_id": f"{i:032x}", "url": f"{url}{i:032x}", "seconds": t, "reason": why}
            for i, (s, how, why, t) in enumerate(stages)
        ],
        "lineage": {"git commit": "33ea92e", "DVC data hash": "d1" * 16, "Airflow run URL": "http://127.0.0.1:8080/x"},
    }
