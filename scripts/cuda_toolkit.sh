#!/bin/sh
# Where CUDA is on this machine; what is missing comes from the package index, into the given Python environment.
#
#   scripts/cuda_toolkit.sh include VENV   prints the folders of the CUDA headers, with a semicolon between them
#                                          (the test emulator compiles against them)
#   scripts/cuda_toolkit.sh nvcc VENV      prints the full path of a working nvcc
#
# The environment OVS_CUDA_FROM_PIP=1 takes both from the package index even if the machine has its own.
set -eu

wanted=$1
venv=$2
root=$(cd "$(dirname "$0")/.." && pwd)

install() {
    echo "==> installing $* (this machine has no CUDA toolkit)" >&2
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts --no-deps -c "$root/constraints.txt" "$@" >&2
}

# The folder that the nvidia-cuda-* packages share, with the `lib64` that nvcc looks for.
pip_toolkit() {
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    toolkit=$site/nvidia/cu13
    [ -e "$toolkit/lib64" ] || ln -s lib "$toolkit/lib64"
    echo "$toolkit"
}

has_headers() {
    for header in cuda_runtime_api.h vector_types.h crt/host_defines.h cuda_fp16.h cuda_bf16.h nv/target; do
        [ -f "$1/$header" ] || [ -f "$1/cccl/$header" ] || return 1
    done
}

print_folders() {
    if [ -d "$1/cccl" ]; then
        echo "$1;$1/cccl"
    else
        echo "$1"
    fi
}

machine_nvcc() {
    [ "${OVS_CUDA_FROM_PIP:-0}" = 1 ] && return 0
    command -v "${CUDACXX:-nvcc}" 2>/dev/null || {
        [ -x /usr/local/cuda/bin/nvcc ] && echo /usr/local/cuda/bin/nvcc
    } || true
}

case $wanted in
nvcc)
    nvcc=$(machine_nvcc)
    if [ -z "$nvcc" ]; then
        install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl
        nvcc=$(pip_toolkit)/bin/nvcc
    fi
    "$nvcc" --version >/dev/null
    echo "$nvcc"
    ;;
include)
    nvcc=$(machine_nvcc)
    if [ -n "$nvcc" ]; then
        # nvcc says itself where it lives; the nvcc on the PATH may be a wrapper somewhere else.
        top=$("$nvcc" --dryrun -c -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
        include=$(cd "$top/include" 2>/dev/null && pwd || true)
        if [ -n "$include" ] && has_headers "$include"; then
            print_folders "$include"
            exit
        fi
    fi
    install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl
    print_folders "$(pip_toolkit)/include"
    ;;
*)
    echo "usage: scripts/cuda_toolkit.sh include|nvcc VENV" >&2
    exit 2
    ;;
esac
