"""What a promotion, a rollback or a client imports, each time: not PyTorch, which takes seconds."""

import subprocess
import sys

LIGHT = ("serving.triton.client", "serving.promotion.promote", "stages.promote", "stages.verify_served")


def test_serving_needs_no_pytorch():
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT}:\n"
        "    importlib.import_module(f'pipeline.{name}')\n"
        "    print(name, *{'torch', 'mlflow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(LIGHT)
