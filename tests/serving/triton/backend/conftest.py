"""Our backend outside Triton: its modules, with a stand-in for what Triton gives to them."""

import importlib
import sys
import types

import pytest

from pipeline.serving.triton.repository import BACKEND, BESIDE_BACKEND


@pytest.fixture
def load(monkeypatch):
    """Import a module of the backend by name, as it would be beside model.py."""

    class TritonError(Exception):
        UNAVAILABLE = "unavailable"

    utils = types.ModuleType("triton_python_backend_utils")
    utils.TritonError = TritonError
    utils.InferenceResponse = lambda tensors=(), error=None: error or list(tensors)
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    utils.Logger = types.SimpleNamespace(log_warn=print, log_info=lambda text: None)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.syspath_prepend(BACKEND.parent)
    names = [path.stem for path in (BACKEND, *BESIDE_BACKEND)]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}

    yield importlib.import_module

    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)
