"""The flat numbers of an evaluation: every measure once, with the bounds that the gate holds to the budget."""

import pytest
from gate_toys import measured

from pipeline.evaluation.figures import engine_metrics, export_metrics, flat_metrics
from pipeline.evaluation.preference import served_ratio
from pipeline.records.candidates import Candidate, Candidates, Mobile
from pipeline.records.engines import Engine, OnGpu, Profile
from pipeline.records.evaluation import Evaluation, Host
from pipeline.records.measures import Offline, Parity

HOST = Host(cpu="a cpu", cores=2, flags=(), system="Linux", python="3.11", onnxruntime="1", torch="2")


def test_figures_are_named_by_candidate_and_carry_their_bounds():
    teacher = measured("teacher", size=4000, turns=(990.0, 1010, 1000, 1005, 995, 1002, 998, 1000))
    int8 = measured("int8", size=1000, turns=(2900.0, 3100, 3000, 3050, 2950, 3020, 2980, 3000))
    found = flat_metrics(Evaluation(labels=("a", "b"), confidence=0.95, candidates=(teacher, int8), host=HOST))
    assert (found["int8_size_bytes"], found["int8_size_ratio"]) == (1000, 4)
    assert found["int8_served_throughput_c64"] == pytest.approx(3000, rel=0.01)
    load = int8.served[64].interval
    bounds = [found["int8_served_throughput_c64_lower"], found["int8_served_throughput_c64_upper"]]
    assert bounds == [load.low, load.high]
    assert found["int8_served_speedup_lower"] == served_ratio(int8, teacher, 0.95).low
    assert found["teacher_served_speedup"] == 1
    assert all(isinstance(value, float) for value in found.values())


PARITY = Parity(images=10, max_difference=0.5, mean_difference=0.25, changed_predictions=1)


def test_an_exported_file_is_its_size_and_its_parity_and_so_is_its_form_for_phones():
    content = {"file": "f", "sha256": "ab", "parity": PARITY}
    pruned = Candidate(
        name="pruned", size_bytes=9, parameters=2, macs=5, precision="float32", target="any", source="pruned", **content
    )
    phone = Mobile(candidate="pruned", format="executorch", size_bytes=7, left_behind=(), **content)
    assert export_metrics(Candidates(candidates=(pruned,), labels=("a", "b"), mobile=(phone,))) == {
        "pruned_parity_max_difference": 0.5, "pruned_parity_mean_difference": 0.25, "pruned_changed_predictions": 1.0,
        "pruned_size_bytes": 9.0, "pruned_parameters": 2.0, "pruned_macs": 5.0,
        "pruned_mobile_parity_max_difference": 0.5, "pruned_mobile_parity_mean_difference": 0.25,
        "pruned_mobile_changed_predictions": 1.0, "pruned_mobile_size_bytes": 7.0,
    }  # fmt: skip


def test_an_engine_that_was_not_run_has_no_figures_of_the_gpu():
    engine = Engine(
        candidate="int8_tensorrt", file="f", sha256="ab", size_bytes=3, onnx_sha256="cd", builder="tensorrt",
        builder_version="10", gpu="a GPU", driver="580", targets=("SM89",), profile=Profile(min=1, opt=4, max=8),
        build_seconds=1.5, layers_from="engine", layers=3, precisions={"int8": 2},
    )  # fmt: skip
    built = {"build_seconds": 1.5, "plan_bytes": 3.0, "int8_layers": 2.0, "float16_layers": 0.0}
    assert engine_metrics([engine]) == {f"int8_tensorrt_{name}": value for name, value in built.items()}
    timed = {8: Offline(images_per_second=1000.0, p50_ms=8.0, p99_ms=9.0, calls=5)}
    run = engine.model_copy(update={"on_gpu": OnGpu(accuracy=0.9, accuracy_onnx=0.95, parity=PARITY, latency=timed)})
    built |= {"accuracy": 0.9, "accuracy_onnx": 0.95, "parity_max_difference": 0.5, "changed_predictions": 1.0}
    built["batch_8_p50_ms"] = 8.0
    assert engine_metrics([run]) == {f"int8_tensorrt_{name}": value for name, value in built.items()}
