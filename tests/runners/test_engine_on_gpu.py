"""Why an engine is not run on this machine; tests/stages/test_build_tensorrt.py runs one, or a stand-in for it."""

import torch

from pipeline.machine.gpu import Gpu
from pipeline.runners.engine_on_gpu import why_not_measured

GPU = Gpu("Test GPU", "580.1", "SM89")


def test_without_a_gpu_or_where_pytorch_does_not_see_it_the_reason_is_said(monkeypatch):
    assert "for a GPU that is not here: neither latency nor answers were measured" in why_not_measured(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch, which holds an engine's buffers, does not see the Test GPU" in why_not_measured(GPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_not_measured(GPU) is None
