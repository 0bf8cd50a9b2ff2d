"""oneDNN convolves wherever it is safe."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline.training.onednn import convolutions, is_unsafe


def strided(channels, kernel=1, stride=2, groups=1):
    return nn.Sequential(nn.Conv2d(channels, 2 * channels, kernel, stride, groups=groups))


@pytest.mark.parametrize(
    ("network", "device", "onednn"),
    [
        (strided(4), "cpu", False),
        (strided(16, groups=4), "cpu", False),
        (strided(1), "cpu", True),
        (strided(8), "cpu", True),
        (strided(4, kernel=3), "cpu", True),
        (strided(4, stride=1), "cpu", True),
        (strided(4), "cuda", True),
    ],
)
def test_only_what_it_would_overrun_is_kept_from_it(network, device, onednn):
    with convolutions(is_unsafe(network, torch.device(device))):
        assert torch.backends.mkldnn.enabled is onednn
    assert torch.backends.mkldnn.enabled


@pytest.mark.extra
def test_a_network_so_narrow_trains_without_damage_to_the_heap():
    code = """
import torch
from torch import nn
from pipeline.training.onednn import convolutions, is_unsafe
torch.set_num_threads(1)
network = nn.Conv2d(4, 8, 1, 2, bias=False).to(memory_format=torch.channels_last)
for _ in range(100):
    images = torch.randn(32, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    with convolutions(is_unsafe(network, torch.device("cpu"))):
        network(images).square().sum().backward()
print("trained")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
