#!/usr/bin/env bash
# Install requirements.lock and Flyweight into a virtual environment that has uv: `infra/setup.sh .venv`.
#
# TORCH says which build of PyTorch. The package index has, for Linux, the one that brings CUDA's libraries along. It cannot
# be imported without them, and a machine without an NVIDIA GPU never uses them.
#   cpu    PyTorch's CPU build, from a place that UV_FIND_LINKS names, or from PyTorch's own index
#   plain  the one of the package index
#   auto   what is installed stays; else cpu where there is no nvidia-smi and it can be had, else plain
set -euo pipefail

uv=$1/bin/uv python=$1/bin/python
version=$(sed -n 's/^torch==//p' requirements.lock)

install() { "$uv" pip install --python "$python" "$@"; }

has_gpu() { command -v nvidia-smi >/dev/null; }

installed() { "$uv" pip show --python "$python" torch 2>/dev/null | grep -qx "Version: $version$1"; }

# Fails, within seconds, where there is no CPU build for this Python and machine.
install_cpu() {
    local index
    for index in "" --torch-backend=cpu; do
        if UV_HTTP_TIMEOUT=5 UV_HTTP_RETRIES=0 timeout 20 \
            "$uv" pip install --python "$python" --dry-run --no-deps ${index:+"$index"} "torch==$version+cpu" &>/dev/null; then
            install --no-deps ${index:+"$index"} "torch==$version+cpu"
            return
        fi
    done
    return 1
}

install_plain() {
    if ! installed ""; then
        echo "PyTorch $version brings CUDA's libraries: 2.7 GB to download, 4.5 GB on disk."
        has_gpu || echo "No nvidia-smi is here: the CPU build would do (0.2 GB, 0.7 GB), but there is none to be had or TORCH is plain."
    fi
    install --no-deps "torch===$version"
}

case ${TORCH:-auto} in
    cpu)
        install_cpu || {
            echo "torch==$version+cpu for $("$python" --version) is neither where PIP_FIND_LINKS points nor to be had from" \
                "PyTorch's own index. Try again where one of them has it, or with TORCH=plain."
            exit 2
        }
        ;;
    plain) install_plain ;;
    auto)
        installed "" || installed +cpu || { ! has_gpu && install_cpu; } || install_plain
        ;;
    *)
        echo "TORCH is '$TORCH': it can be cpu, plain or auto."
        exit 2
        ;;
esac
install -r requirements.lock
install --quiet --no-deps --no-build-isolation --editable .
