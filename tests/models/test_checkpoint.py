import json

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import checkpoint, surgery
from pipeline.models.spec import Preprocessing, PruningStep, image_classifier


@pytest.fixture
def spec():
    preprocessing = Preprocessing(mean=(0.2, 0.3), std=(0.5, 0.25))
    return image_classifier("resnet", {"width": 4, "blocks": [1, 1]}, (2, 8, 8), ("a", "b", "c"), preprocessing)


def test_a_checkpoint_comes_back_as_it_was(spec, tmp_path):
    network = checkpoint.build(spec).eval()
    checkpoint.save(tmp_path, spec, network)
    images = torch.randn(5, 2, 8, 8)
    found, again = checkpoint.load(tmp_path)
    assert found == spec and not again.training
    assert torch.equal(again(images), network(images))
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors"}


def test_raw_pixels_are_normalised_channel_by_channel(spec):
    network = checkpoint.build(spec).eval()
    raw = torch.randint(0, 256, (3, 2, 8, 8), dtype=torch.uint8)
    normalised = checkpoint.normalise(spec, raw)
    assert torch.allclose(normalised[:, 1], (raw[:, 1] / 255.0 - 0.3) / 0.25)
    assert torch.allclose(checkpoint.WithPreprocessing(spec, network)(raw), network(normalised), atol=1e-6)


def test_a_pruning_plan_sets_the_widths(spec):
    narrow = {"blocks.0.conv1": (4, 2), "blocks.0.bn1": (2, 2), "blocks.0.conv2": (2, 4)}
    network = checkpoint.build(spec.model_copy(update={"pruning": (PruningStep(method="x", widths=narrow),)}))
    assert surgery.widths(network) | narrow == surgery.widths(network)
    assert network(torch.zeros(1, 2, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("layer", "text"),
    [("blocks.7.conv1", "names layer 'blocks.7.conv1', which this architecture lacks"), ("pool", "cannot be set")],
)
def test_a_plan_that_does_not_fit_is_refused(spec, layer, text):
    step = PruningStep(method="x", widths={layer: (1, 1)})
    with pytest.raises(ModelError, match=text):
        checkpoint.build(spec.model_copy(update={"pruning": (step,)}))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no whole model: model\.json cannot be read"):
        checkpoint.load(tmp_path)


def test_weights_that_do_not_fit_are_refused(spec, tmp_path):
    checkpoint.save(tmp_path, spec, checkpoint.build(spec))
    wide = json.loads((tmp_path / "model.json").read_text())
    wide["arguments"]["width"] = 8
    (tmp_path / "model.json").write_text(json.dumps(wide))
    with pytest.raises(ModelError, match=r"model\.safetensors does not fit model\.json beside it"):
        checkpoint.load(tmp_path)


def test_truncated_weights_are_refused(spec, tmp_path):
    checkpoint.save(tmp_path, spec, checkpoint.build(spec))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:200])
    with pytest.raises(ModelError, match=r"model\.safetensors does not fit"):
        checkpoint.load(tmp_path)
