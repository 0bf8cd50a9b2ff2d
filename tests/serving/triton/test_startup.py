"""What a promotion, a rollback or a client imports, each time: not PyTorch, which takes seconds."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["serving.triton.client", "serving.promotion.promote", "stages.promote", "stages.verify_served"]
)
def test_serving_needs_no_pytorch(module):
    code = f"import sys, pipeline.{module}; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
