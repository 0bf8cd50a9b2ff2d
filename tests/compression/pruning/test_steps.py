import itertools

import torch
from torch import nn

from pipeline.compression.pruning.steps import batches_of, prune_once, rehearse
from pipeline.data.manifest import load_manifest
from pipeline.data.split import open_split
from pipeline.models.spec import PruningStep
from pipeline.settings.base import Component
from pipeline.training.fit import new_spec

PLAIN = Component(name="training_toys:Plain")


class Halve:
    """Halves a weight, in place."""

    def __call__(self, spec, network, batches):
        with torch.no_grad():
            network.weight.mul_(0.5)
        return PruningStep(method=f"step {len(spec.pruning)}", arguments={})


def test_each_step_is_added_to_the_spec(tiny_data):
    spec, network = new_spec(PLAIN, load_manifest(tiny_data)), nn.Linear(2, 2)
    before = network.weight.clone()
    rehearse([Halve(), Halve()], spec, network, iter(()))
    assert torch.equal(network.weight, before), "a rehearsal is on a copy"
    for _ in range(2):
        spec = prune_once(Halve(), spec, network, iter(()))
    assert [step.method for step in spec.pruning] == ["step 0", "step 1"]
    assert torch.equal(network.weight, before / 4)


def test_batches_follow_from_the_seed_and_do_not_end(tiny_data):
    split, spec = open_split(tiny_data, "train"), new_spec(PLAIN, load_manifest(tiny_data))
    one, again, other = (list(itertools.islice(batches_of(split, spec, seed), 12)) for seed in (1, 1, 2))
    assert all(images.shape == (64, 1, 8, 8) and len(labels) == 64 for images, labels in one)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    assert one[0][0].dtype == torch.float32 and one[0][1].dtype == torch.int64
