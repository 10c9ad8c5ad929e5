#!/usr/bin/env bash
# Builds for the GPU at hand, tests on it, runs compute-sanitizer and the benchmarks; logs and JSON go to OUT.
#
#   scripts/gpu_check.sh OUT [FAMILY]      FAMILY: pixels, ...; all by default
#
# No network is used. What is missing on the machine is named and its step skipped. Correctness comes before speed, and
# OUT/summary.json is rewritten after each step, so that a run that is cut off still tells what it found.
# Exit status: 0 when every step that ran passed and the tests on the GPU were among them.
set -uo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: scripts/gpu_check.sh OUT [FAMILY]" >&2
    exit 2
fi
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
FAMILY=${2:-}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
WORK=$ROOT/build/gpu
VENV_PYTHON=$WORK/venv/bin/python
results=()
failures=0
cd "$ROOT" || exit 2
mkdir -p "$WORK"

find_tool() { # find_tool NAME: on the PATH, beside nvcc, or in CUDA's usual place
    command -v "$1" 2>/dev/null && return
    for folder in "$(dirname "$(command -v nvcc 2>/dev/null || echo /none/nvcc)")" /usr/local/cuda/bin; do
        [ -x "$folder/$1" ] && echo "$folder/$1" && return
    done
    return 1
}

record() { # record STEP STATUS SECONDS
    results+=("    {\"step\": \"$1\", \"status\": \"$2\", \"seconds\": $3}")
    local joined
    joined=$(printf ',\n%s' "${results[@]}")
    printf '{\n  "commit": "%s",\n  "gpu": "%s",\n  "family": "%s",\n  "steps": [%s\n  ]\n}\n' \
        "$(git rev-parse --verify -q HEAD 2>/dev/null || echo unknown)" "$gpu" "${FAMILY:-all}" "${joined:1}" >"$OUT/summary.json"
    printf '==> %-28s %-24s %s s\n' "$1" "$2" "$3"
}

run() { # run STEP LOG SECONDS COMMAND...: one step with a time limit, its output appended to OUT/LOG
    local step=$1 log=$OUT/$2 limit=$3 begin=$SECONDS status=0
    shift 3
    echo "### $step: $*" >>"$log"
    timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1 || status=$?
    if [ $status -eq 0 ]; then
        record "$step" passed $((SECONDS - begin))
        return
    fi
    failures=$((failures + 1))
    if [ $status -eq 124 ]; then
        record "$step" "stopped after $limit s" $((SECONDS - begin))
    else
        record "$step" "failed ($status)" $((SECONDS - begin))
    fi
    tail -n 25 "$log"
    return 1
}

skip() { record "$1" "skipped: $2" 0; }

# An environment of its own that sees the packages of $PYTHON, itself perhaps an environment.
make_venv() {
    rm -rf "$WORK/venv"
    "$PYTHON" -m venv --without-pip "$WORK/venv" || return
    local site
    site=$("$VENV_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return
    "$PYTHON" -c 'import sys; print(*dict.fromkeys(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
        >"$site/machine.pth"
}

build() {
    "$VENV_PYTHON" -m pip install --no-build-isolation --no-deps --no-index --force-reinstall -v \
        --config-settings=build-dir="$WORK/build" --config-settings=cmake.define.OVS_CUDA=ON \
        --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=native . || return
    cd "$WORK" && "$VENV_PYTHON" -m ovs_kernels
}

# From a folder without the source tree, so that the installed package is the one tested. No test passed is a failure.
run_pytest() { # run_pytest MARKERS
    local status=0
    cd "$WORK" && "$VENV_PYTHON" -m pytest -c "$ROOT/pyproject.toml" --rootdir "$ROOT" -q -p no:cacheprovider \
        -m "$1" ${FAMILY:+-k "$FAMILY"} "$ROOT/tests" >pytest.log 2>&1 || status=$?
    cat pytest.log
    tail -n 1 pytest.log | grep -Eq '(^|[ =])[1-9][0-9]* passed' || return 1
    return $status
}

build_cases() { # build_cases FAMILY: the C++ test program of a family, for compute-sanitizer
    local sources
    mapfile -t sources < <(ls "$ROOT/tests/csrc/$1_cases.cpp" "$ROOT"/csrc/*/*.{cpp,cu} 2>/dev/null | grep -v /bindings/)
    "$NVCC" -std=c++17 -O2 -lineinfo -arch=native -I"$ROOT/csrc" -DOVS_WITH_CUDA=1 -DOVS_ISA=baseline -DOVS_ISA_LEVEL=0 \
        "${sources[@]}" -o "$WORK/$1_cases"
}

export -f make_venv build run_pytest build_cases
export ROOT WORK PYTHON VENV_PYTHON FAMILY
gpu=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
if [ -z "$gpu" ]; then
    gpu="none"
    failures=1
    skip "everything" "nvidia-smi shows no GPU"
    exit 1
fi
if ! NVCC=$(find_tool nvcc); then
    failures=1
    skip "everything" "no nvcc"
    exit 1
fi
export NVCC CUDACXX=$NVCC
families=$FAMILY
if [ -z "$families" ]; then
    families=$(sed -n 's/^set(OVS_FAMILIES \(.*\))$/\1/p' CMakeLists.txt)
fi

rm -f "$OUT"/*.log "$OUT"/*.json
{
    nvidia-smi
    "$NVCC" --version
    "$PYTHON" --version
    "$PYTHON" -m pip list 2>/dev/null | grep -iE '^(torch|numpy|pybind11|scikit.build.core|cmake|ninja|pytest|cupy)'
} >"$OUT/environment.log" 2>&1

run "environment" build.log 60 bash -c make_venv || exit 1
run "build" build.log 240 bash -c build || exit 1

# Correctness: what only a GPU can tell.
if "$VENV_PYTHON" -c 'import pytest' 2>/dev/null; then
    run "tests on the GPU" pytest_cuda.log 240 bash -c 'run_pytest "cuda and not slow"'
else
    failures=$((failures + 1))
    skip "tests on the GPU" "no pytest"
fi

sanitizer=$(find_tool compute-sanitizer) || sanitizer=""
for family in $families; do
    if [ ! -f "tests/csrc/${family}_cases.cpp" ]; then
        skip "sanitizer $family" "no tests/csrc/${family}_cases.cpp"
    elif run "cases $family: build" sanitizer.log 120 bash -c "build_cases $family" &&
        run "cases $family: run" sanitizer.log 60 "$WORK/${family}_cases"; then
        for tool in memcheck racecheck initcheck; do
            if [ -n "$sanitizer" ]; then
                run "$tool $family" sanitizer.log 120 "$sanitizer" --tool $tool --error-exitcode 1 "$WORK/${family}_cases"
            else
                skip "$tool $family" "no compute-sanitizer"
            fi
        done
    fi
done

# Speed.
for family in $families; do
    if [ -f "benchmarks/bench_$family.py" ]; then
        run "benchmark $family" bench.log 180 \
            "$VENV_PYTHON" benchmarks/run.py --device cuda --family "$family" --json "$OUT/bench_$family.json"
    else
        skip "benchmark $family" "no benchmarks/bench_$family.py"
    fi
done

# The other tests, if there is time left.
if "$VENV_PYTHON" -c 'import pytest' 2>/dev/null; then
    run "tests on the CPU" pytest_cpu.log 150 bash -c 'run_pytest "not cuda and not slow"'
fi

echo "==> $OUT/summary.json"
[ "$failures" -eq 0 ]
