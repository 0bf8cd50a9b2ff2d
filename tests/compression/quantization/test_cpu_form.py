"""What is concluded of the form for CPUs."""

import pytest

from pipeline.compression.quantization.cpu_form import CpuForm
from pipeline.compression.quantization.proof import Proof, Speed
from pipeline.compression.quantization.saturation import EVERYWHERE, WITH_VNNI, Saturation
from pipeline.machine import cpu
from pipeline.records.measures import Interval


@pytest.fixture
def proof():
    speed = Speed(
        float_images_per_second=10.0, int8_images_per_second=20.0, ratio=2.0, interval=Interval(low=1.9, high=2.1)
    )
    return Proof(
        fused_integer_ops=10, float_ops_left=0, speed={64: speed}, pace="faster", agreement=1.0, cpu=cpu.describe(),
        sentence="int8 is fast.",
    )  # fmt: skip


@pytest.fixture
def valid():
    return Saturation(
        images=9, accuracy=1.0, saturated_accuracy=1.0, changed=0.0, saturating_operators=0, valid_on=EVERYWHERE, needs=(),
        sentence="It is valid.",
    )  # fmt: skip


def test_int8_that_is_faster_and_valid_everywhere_is_served_without_a_warning(proof, valid, caplog):
    found = CpuForm(proof, valid).conclusions()
    assert (found["serve"], found["valid_on"]) == ("int8", EVERYWHERE)
    assert found["proof"]["speed"]["64"]["ratio"] == 2.0 and "valid_on" not in found["without_vnni"]
    assert caplog.text == ""


def test_int8_that_is_slower_or_not_valid_everywhere_is_said_so(proof, valid, caplog):
    slow = proof.model_copy(update={"pace": "slower", "sentence": "int8 is slow."})
    doubtful = valid.model_copy(update={"needs": ("avx_vnni",), "valid_on": WITH_VNNI, "sentence": "Sums saturate."})
    found = CpuForm(slow, doubtful).conclusions()
    assert (found["serve"], found["valid_on"]) == ("pruned", WITH_VNNI)
    assert "int8 is slow." in caplog.text and "Sums saturate." in caplog.text


def test_its_numbers_are_named_by_batch_and_by_what_is_compared(proof, valid):
    assert CpuForm(proof, valid).metrics() == {
        "int8_speedup_batch_64": 2.0, "int8_images_per_second_batch_64": 20.0, "int8_agreement": 1.0,
        "int8_accuracy_without_vnni": 1.0, "int8_changed_without_vnni": 0.0,
    }  # fmt: skip
