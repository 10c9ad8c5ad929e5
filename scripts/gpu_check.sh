#!/usr/bin/env bash
# Builds for the GPU at hand, tests on it, runs compute-sanitizer and the benchmarks; logs and JSON go to OUT.
#
#   scripts/gpu_check.sh OUT [FAMILY]      FAMILY: pixels, ...; all by default
#
# No network is used. What is missing on the machine is named and its step skipped. A step that fails does not stop
# those after it. Correctness comes before speed, and OUT/summary.json is rewritten after each step, so that a run that
# is cut off still tells what it found. The last lines repeat what became of every step.
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
results=() # JSON
lines=()   # the same for people
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

record() { # record STEP STATUS SECONDS [DETAIL]
    local detail joined
    detail=$(printf '%s' "${4:-}" | tr -cd '[:alnum:] .,:;=+()/_-')
    results+=("    {\"step\": \"$1\", \"status\": \"$2\", \"seconds\": $3, \"detail\": \"$detail\"}")
    joined=$(printf ',\n%s' "${results[@]}")
    printf '{\n  "commit": "%s",\n  "gpu": "%s",\n  "family": "%s",\n  "steps": [%s\n  ]\n}\n' \
        "$commit" "$gpu" "${FAMILY:-all}" "${joined:1}" >"$OUT/summary.json"
    lines+=("$(printf '==> %-26s %-20s %4s s  %s' "$1" "$2" "$3" "$detail")")
    echo "${lines[-1]}"
}

run() { # run STEP LOG SECONDS COMMAND...: one step with a time limit, its output appended to OUT/LOG
    local step=$1 log=$OUT/$2 limit=$3 begin=$SECONDS status=0 result=passed last
    shift 3
    echo "### $step: $*" >>"$log"
    timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1 || status=$?
    case $status in
    0) ;;
    124 | 137) result="stopped after $limit s" ;;
    *) result="failed ($status)" ;;
    esac
    last=$(tail -n 5 "$log" | grep -v '^###' | grep '[[:alpha:]]' | tail -n 1)
    record "$step" "$result" $((SECONDS - begin)) "$last"
    [ $status -eq 0 ] && return
    failures=$((failures + 1))
    tail -n 25 "$log"
    return 1
}

skip() { record "$1" skipped 0 "$2"; } # skip STEP REASON

lack() { # lack STEP REASON: a step that cannot be done and without which the check is worth little
    failures=$((failures + 1))
    record "$1" "not done" 0 "$2"
}

finish() {
    echo
    echo "==> all steps on $gpu"
    printf '%s\n' "${lines[@]}"
    echo "==> $OUT/summary.json"
    if [ "$failures" -gt 0 ]; then
        echo "==> $failures of ${#lines[@]} steps FAILED"
        exit 1
    fi
    echo "==> no step failed"
    exit 0
}

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
        --run-slow -m "$1" ${FAMILY:+-k "$FAMILY"} "$ROOT/tests" >pytest.log 2>&1 || status=$?
    cat pytest.log
    tail -n 1 pytest.log | grep -Eq '(^|[ =])[1-9][0-9]* passed' || return 1
    return $status
}

# The C++ test program of a family with all of csrc but the bindings. OVS_CASES_ARCH: for another card than this one.
build_cases() { # build_cases FAMILY
    local sources
    mapfile -t sources < <(
        ls "$ROOT/tests/csrc/$1_cases.cpp" "$ROOT"/csrc/*/*.{cpp,cu} 2>/dev/null | grep -v /bindings/
    )
    rm -f "$WORK/$1_cases"
    "$NVCC" -std=c++17 -O2 -lineinfo -arch="${OVS_CASES_ARCH:-native}" --threads 0 -I"$ROOT/csrc" -DOVS_WITH_CUDA=1 \
        -DOVS_ISA=baseline -DOVS_ISA_LEVEL=0 "${sources[@]}" -o "$WORK/$1_cases"
}

export -f make_venv build run_pytest build_cases
export ROOT WORK PYTHON VENV_PYTHON FAMILY
commit=$(git rev-parse --verify -q HEAD 2>/dev/null || echo unknown)
gpu=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
rm -f "$OUT"/*.log "$OUT"/*.json
if [ -z "$gpu" ]; then
    gpu="none"
    lack "everything" "nvidia-smi shows no GPU"
    finish
fi
if ! NVCC=$(find_tool nvcc); then
    lack "everything" "no nvcc"
    finish
fi
export NVCC CUDACXX=$NVCC
families=$FAMILY
if [ -z "$families" ]; then
    families=$(sed -n 's/^set(OVS_FAMILIES \(.*\))$/\1/p' CMakeLists.txt)
fi
{
    nvidia-smi
    "$NVCC" --version
    "$PYTHON" --version
    "$PYTHON" -m pip list 2>/dev/null | grep -iE '^(torch|numpy|pybind11|scikit.build.core|cmake|ninja|pytest|cupy)'
} >"$OUT/environment.log" 2>&1

installed=no
run "environment" build.log 60 bash -c make_venv && run "build" build.log 300 bash -c build && installed=yes
pytest=no
[ $installed = yes ] && "$VENV_PYTHON" -c 'import pytest' 2>/dev/null && pytest=yes

# Correctness: what only a GPU can tell.
if [ $pytest = yes ]; then
    run "tests on the GPU" pytest_cuda.log 300 bash -c 'run_pytest cuda'
elif [ $installed = yes ]; then
    lack "tests on the GPU" "no pytest"
else
    lack "tests on the GPU" "the package was not built"
fi

sanitizer=$(find_tool compute-sanitizer) || sanitizer=""
for family in $families; do
    if run "cases $family: build" sanitizer.log 180 bash -c "build_cases $family" &&
        run "cases $family: run" sanitizer.log 60 "$WORK/${family}_cases"; then
        for tool in memcheck racecheck initcheck synccheck; do
            if [ -n "$sanitizer" ]; then
                run "$tool $family" sanitizer.log 150 \
                    "$sanitizer" --tool $tool --error-exitcode 1 "$WORK/${family}_cases"
            else
                skip "$tool $family" "no compute-sanitizer"
            fi
        done
    else
        lack "compute-sanitizer $family" "the cases do not build or do not pass"
    fi
done

# Speed.
if [ $installed = yes ]; then
    run "benchmarks" bench.log 240 \
        "$VENV_PYTHON" benchmarks/run.py --device cuda --family "${FAMILY:-all}" --json "$OUT/benchmarks.json"
else
    lack "benchmarks" "the package was not built"
fi

# The rest of the tests, if there is time left.
if [ $pytest = yes ]; then
    run "the other tests" pytest_cpu.log 300 bash -c 'run_pytest "not cuda"'
else
    skip "the other tests" "see the tests on the GPU"
fi
finish
