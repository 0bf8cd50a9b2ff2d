import pytest
import torch
from torch.nn import functional as F
from training_jobs import PLAIN

from pipeline.data.manifest import load_manifest
from pipeline.data.split import open_split
from pipeline.models import checkpoint
from pipeline.training.fit import new_spec
from pipeline.training.validation import evaluate


def test_evaluate_counts_every_image_of_the_split(tiny_data):
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    network, split = checkpoint.build(spec), open_split(tiny_data, "validation")
    logits = checkpoint.WithPreprocessing(spec, network)(torch.tensor(split.images()))
    labels = torch.from_numpy(split.labels)
    accuracy, loss = evaluate(network, spec, split)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert network.training
