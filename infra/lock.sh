#!/bin/sh
# Write requirements.lock from pyproject.toml: `sh infra/lock.sh`. Add `--upgrade` to take newer versions of everything.
#
# One universal lock for Python 3.11 to 3.13, without URLs. `--fork-strategy fewest` takes one version of a package for all of
# them, even where a newer Python could have a newer one: what was tested is what everybody gets. CUDA's packages stay out:
# torch's own metadata pins them, and a machine without a GPU should not fetch gigabytes. UV_FIND_LINKS is unset so that no
# local build (torch==2.13.0+cpu) gets into a file that is for everyone.
set -eu
cd "$(dirname "$0")/.."
unset UV_FIND_LINKS
set -- "$@" --no-emit-package triton
for name in cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
    nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
    nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx; do
    set -- "$@" --no-emit-package "$name"
done
.venv/bin/uv pip compile --universal --fork-strategy fewest --python-version 3.11 --extra dev --extra production \
    --no-header --quiet "$@" --output-file requirements.lock pyproject.toml
