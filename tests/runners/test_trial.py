"""An exported file beside the network it was made from: batch sizes, formats that ONNX Runtime lacks, limits."""

import numpy as np
import pytest
import torch

from pipeline.compression.quantization.quantizers.bf16 import Bf16
from pipeline.errors import ModelError
from pipeline.export import onnx_graph
from pipeline.models import checkpoint
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.records.measures import Parity
from pipeline.runners import trial


def test_a_graph_that_does_not_run_at_some_batch_is_refused():
    class Single:
        name = "single"

        def __call__(self, inputs):
            if len(inputs["image"]) > 1:
                raise ModelError("Got: 7 Expected: 1")
            return {"logits": np.zeros((1, 2), np.float32)}

    with pytest.raises(ModelError, match=r"candidate 'pruned' does not take a batch of 7: Got: 7 Expected: 1"):
        trial.try_batches(Single(), "pruned", np.zeros((3, 1, 8, 8), np.uint8), trial.BATCHES)


def test_a_difference_above_the_limit_is_refused():
    parity = Parity(images=5, max_difference=0.25, mean_difference=0.1, changed_predictions=2)
    trial.hold_to_limit("candidate 'teacher'", parity, 0.25)
    message = r"candidate 'teacher' differs from PyTorch by up to 0\.25 on 5 .* allows 0\.2\. .* if 2 changed"
    with pytest.raises(ModelError, match=message):
        trial.hold_to_limit("candidate 'teacher'", parity, 0.2)


@pytest.mark.extra
@pytest.mark.integration
def test_bfloat16_is_compared_although_onnx_runtime_cannot_run_it(tmp_path):
    torch.manual_seed(0)
    preprocessing = Preprocessing(mean=(0.5,), std=(0.25,))
    spec = image_classifier("resnet", {"width": 8, "blocks": [1, 1]}, (1, 8, 8), tuple("abc"), preprocessing)
    checkpoint.save(tmp_path, spec, checkpoint.build(spec))
    loaded = checkpoint.Checkpoint.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
    onnx_graph.export(spec, loaded.network, tmp_path / "float.onnx")
    Bf16()(tmp_path / "float.onnx", images, tmp_path / "model.onnx", "tensorrt")
    exact = trial.try_onnx(tmp_path / "float.onnx", "pruned", "float32", loaded, images)
    found = trial.try_onnx(tmp_path / "model.onnx", "int8_tensorrt", "bfloat16", loaded, images)
    assert exact.max_difference < 1e-5 < found.max_difference < 1.0
    assert exact.changed_predictions == 0 and found.changed_predictions <= 5
