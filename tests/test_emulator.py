"""The CUDA test emulator itself: it computes what CUDA defines, and it notices the mistakes it is there for.

The programs are those of tests/cuda_emulator (`make emulator`): `emulator_samples` as it is, with the stack
switch for other processors (_ucontext), under AddressSanitizer (_asan) and under ThreadSanitizer (_tsan).
"""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("OVS_EMULATOR_DIR") or REPOSITORY / "build" / "emulator")
ORDERS = ("forward", "reverse", "random:1", "random:2")
VARIANTS = ("", "_ucontext", "_asan", "_tsan")
SANITIZER_STATUS = 66
FAMILIES = sorted({path.parent.name for path in (REPOSITORY / "csrc").glob("*/*_cuda*.cu")})

CHECKS = (
    "warp_operations",
    "block_votes",
    "atomics",
    "math",
    "block_sums",
    "stencil",
    "errors",
    "device",
    "os_threads",
)

# Numbers of barriers of the kernels in samples/kernels_deletable.cu
DELETABLE = {
    "reverse_rows": 2,
    "scan": 3,
    "counting_sort": 3,
    "row_sums": 2,
    "reverse_in_warps": 2,
    "box3": 2,
}
DELETIONS = [(name, number) for name, count in DELETABLE.items() for number in range(count)]

KERNELS = r"tests/cuda_emulator/samples/kernels_buggy\.cu:\d+"
ERRORS = {
    "divergent_barrier": rf"divergent __syncthreads: thread \d+ is at {KERNELS}, thread \d+ at {KERNELS}",
    "barrier_against_shuffle": rf"deadlock: 64 of 64 .*__shfl_sync .*{KERNELS}.*__syncthreads at {KERNELS}",
    "lane_outside_mask": rf"{KERNELS}: lane 31 is not in its own mask 0x7fffffff",
    "early_exit": rf"thread \d+ exited .*__syncthreads at {KERNELS}",
    "too_much_shared": r"shared memory: at most 232448 bytes per block, the kernel needs 246784 or more",
    "too_many_threads": r"launch: invalid configuration: grid \(1,1,1\), block \(2048,1,1\)",
    "too_much_dynamic_shared": r"launch: at most 232448 bytes of shared memory per block, got 233472",
    "host_pointer": r"launch: argument 0 of the kernel is not a device pointer",
    "freed_pointer": r"launch: argument 0 of the kernel is not a device pointer",
    "copy_past_the_end": r"cudaMemcpy: source: 260 bytes are not all in one allocation of the device",
    "wrong_copy_kind": r"cudaMemcpy: target: 256 bytes are not all in one allocation of the device",
}


def without_programs() -> None:
    reason = "emulator not built: run `make emulator`"
    if os.environ.get("OVS_REQUIRE_EMULATOR", "0") not in ("", "0"):
        pytest.fail(f"OVS_REQUIRE_EMULATOR is set, and {reason}")
    pytest.skip(reason)


@functools.cache
def run_samples(*arguments, variant="", order="forward", **settings):
    """Runs `emulator_samples` with these arguments and CUDAEMU_* settings; returns the completed process."""
    return run_program("emulator_samples" + variant, *arguments, order=order, **settings)


def run_program(name, *arguments, order, **settings):
    program = FOLDER / name
    if not program.exists():
        without_programs()
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUDAEMU_")}
    env |= {f"CUDAEMU_{name.upper()}": value for name, value in settings.items()}
    env |= {
        "CUDAEMU_ORDER": order,
        "ASAN_OPTIONS": f"exitcode={SANITIZER_STATUS}:detect_leaks=0",
        "TSAN_OPTIONS": f"exitcode={SANITIZER_STATUS}:halt_on_error=0:atexit_sleep_ms=0",
    }
    command = [str(program), *map(str, arguments)]

    def run(prefix):
        return subprocess.run(prefix + command, env=env, capture_output=True, text=True, timeout=120, check=False)

    result = run([])
    if "unexpected memory mapping" in result.stderr and shutil.which("setarch"):
        result = run(["setarch", "-R"])  # this ThreadSanitizer is older than the kernel's address layout
    return result


def outcome(result):
    """The last line of the standard output, after making sure that the program ended as it should."""
    assert result.returncode in (0, 1), result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout.splitlines()[-1]


def report(result, text):
    """Whether a sanitizer ended the program with a report that contains the text."""
    return result.returncode == SANITIZER_STATUS and text in result.stderr


# What is right


BUILDS_AND_ORDERS = [
    *(("", order) for order in ORDERS),
    ("_ucontext", "reverse"),
    ("_asan", "forward"),
    ("_asan", "random:1"),
    ("_tsan", "random:1"),
]


@pytest.mark.parametrize(("variant", "order"), BUILDS_AND_ORDERS)
@pytest.mark.parametrize("check", CHECKS)
def test_checks(check, variant, order):
    assert outcome(run_samples("check", check, variant=variant, order=order)) == "ok"


def test_success_prints_nothing_else():
    result = run_samples("check", "stencil")
    assert (result.stdout, result.stderr) == ("ok\n", "")


def test_orders_are_read_at_each_launch():
    orders = ["forward", "reverse", "random:1", "random:2", "random:1"]
    lines = run_samples("turns", *orders).stdout.splitlines()
    forward, reverse, random_1, random_2, random_1_again = ([int(x) for x in line.split()] for line in lines)
    assert forward == list(range(16))
    assert reverse == forward[::-1]
    assert sorted(random_1) == sorted(random_2) == forward
    assert random_1 not in (forward, reverse, random_2)
    assert random_1 == random_1_again


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "backward"}, "CUDAEMU_ORDER: expected forward, reverse or random:SEED, got backward"),
        ({"order": "random:x"}, "CUDAEMU_ORDER: expected forward, reverse or random:SEED, got random:x"),
        ({"async": "yes"}, "CUDAEMU_ASYNC: expected 0 or 1, got yes"),
    ],
)
def test_unknown_setting(settings, message):
    result = run_samples("bug", "none", **settings)
    assert message in result.stdout
    assert result.returncode != 0


def test_host_pointers_on_request():
    result = run_samples("bug", "host_pointer", host_pointers="1")
    assert "cudaSuccess" in result.stdout
    assert outcome(result) == "right"


# What is noticed


@pytest.mark.parametrize(("variant", "order"), BUILDS_AND_ORDERS)
def test_no_bug(variant, order):
    result = run_samples("bug", "none", variant=variant, order=order)
    assert "cudaSuccess" in result.stdout
    assert outcome(result) == "right"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bug", ERRORS)
def test_error(bug, order):
    result = run_samples("bug", bug, order=order)
    assert result.returncode == 0, result.stderr
    assert re.search(ERRORS[bug], result.stdout), result.stdout
    assert outcome(result) != "right"


@pytest.mark.parametrize("variant", VARIANTS[1:])
@pytest.mark.parametrize("bug", ["divergent_barrier", "barrier_against_shuffle", "early_exit"])
def test_error_in_other_builds(bug, variant):
    result = run_samples("bug", bug, variant=variant)
    assert re.search(ERRORS[bug], result.stdout), result.stdout + result.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_uninitialised_shared_memory_is_nan(order):
    assert outcome(run_samples("bug", "uninitialised_shared", order=order)) == "nan"


@pytest.mark.parametrize("bug", ["shared_out_of_bounds", "dynamic_shared_too_small", "global_out_of_bounds"])
def test_address_sanitizer(bug):
    result = run_samples("bug", bug, variant="_asan")
    assert report(result, "heap-buffer-overflow"), result.stdout + result.stderr
    assert re.search(rf"#0 .* in {bug}_kernel\(?.*kernels_buggy\.cu:\d+", result.stderr), result.stderr


@pytest.mark.parametrize("bug", ["missing_barrier", "war_race"])
def test_thread_orders(bug):
    assert {outcome(run_samples("bug", bug, order=order)) for order in ORDERS} & {"wrong", "nan"}


@pytest.mark.parametrize("bug", ["missing_barrier", "war_race", "shuffle_as_fence"])
def test_thread_sanitizer(bug):
    result = run_samples("bug", bug, variant="_tsan")
    assert report(result, "WARNING: ThreadSanitizer: data race"), result.stdout + result.stderr
    assert re.search(rf"{bug}_kernel.* .*kernels_buggy\.cu:\d+", result.stderr), result.stderr


@pytest.mark.parametrize("bug", ["missing_synchronisation", "wrong_stream"])
def test_missing_synchronisation(bug):
    # `async` is a word of Python, hence the dictionary
    assert outcome(run_samples("bug", bug)) == "right"
    assert outcome(run_samples("bug", bug, **{"async": "1"})) == "wrong"
    assert outcome(run_samples("bug", "synchronised", **{"async": "1"})) == "right"


# Barriers


def test_list_of_deletable_kernels():
    lines = run_samples("list").stdout.splitlines()
    assert {line.split()[0]: int(line.split()[1]) for line in lines} == DELETABLE


@pytest.mark.parametrize("name", DELETABLE)
def test_all_barriers(name):
    for order in (*ORDERS, "random:3"):
        assert outcome(run_samples("delete", name, -1, order=order)) == "right"
    assert outcome(run_samples("delete", name, -1, order="random:1", variant="_tsan")) == "right"


@pytest.mark.parametrize(("name", "number"), DELETIONS)
def test_deleted_barrier_is_noticed(name, number):
    assert report(run_samples("delete", name, number, variant="_tsan"), "data race")


# In row_sums the next row's sums come too late to do harm in any order of turns: a case for the sanitizer.
@pytest.mark.parametrize(("name", "number"), [each for each in DELETIONS if each != ("row_sums", 1)])
def test_deleted_barrier_changes_the_result_in_some_order(name, number):
    assert "wrong" in {outcome(run_samples("delete", name, number, order=order)) for order in ORDERS}


# The core's own C++ cases (tests/csrc) under the emulator


CASE_RUNS = [
    *(("", order, "0") for order in ORDERS),
    ("", "forward", "1"),
    ("_asan", "random:1", "0"),
    ("_tsan", "random:1", "0"),
]


def test_every_family_has_cases():
    cmake = (REPOSITORY / "CMakeLists.txt").read_text()
    (listed,) = re.findall(r"^set\(OVS_FAMILIES ([a-z ]+)\)$", cmake, re.MULTILINE)
    assert set(FAMILIES) == set(listed.split())


@pytest.mark.parametrize(("variant", "order", "deferred"), CASE_RUNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cases(family, variant, order, deferred):
    arguments = ["--small"] if variant == "_tsan" else []
    result = run_program(f"{family}_cases{variant}", *arguments, order=order, **{"async": deferred})
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) >= (5 if arguments else 20), result.stdout
    assert [line for line in lines if not line.startswith("ok ")] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_take_no_unknown_argument(family):
    result = run_program(f"{family}_cases", "--smal", order="forward")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"usage: {family}_cases")


# The rules that keep the kernels runnable here


def core_files():
    suffixes = {".h", ".cuh", ".cu", ".cpp"}
    files = [path for path in (REPOSITORY / "csrc").rglob("*") if path.suffix in suffixes]
    assert files
    return files


def lines_with(pattern, files):
    """`file:line: text` of the lines that match outside of // comments."""
    found = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("//")[0]
            if re.search(pattern, code):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize(
    "pattern",
    [
        r"<<<",
        r"\b__shared__\b",
        r"\bcudaMalloc\w*",
        r"\bcudaFree\w*",
        r"\bcudaDeviceSynchronize\b",
        r"\b__activemask\b",
        r"#\s*include\s*<(cub|thrust|cooperative_groups)\b",
    ],
)
def test_only_launch_and_device_know_the_compiler(pattern):
    known = {"launch.cuh", "device.cuh"}
    assert lines_with(pattern, [path for path in core_files() if path.name not in known]) == []


def test_core_knows_no_python():
    core = [path for path in core_files() if "bindings" not in path.parts]
    assert lines_with(r"#\s*include\s*[<\"](Python\.h|pybind11|torch|ATen|c10|numpy)", core) == []
    bindings = [path for path in core_files() if "bindings" in path.parts]
    assert lines_with(r"#\s*include\s*[<\"](torch|ATen|c10)", bindings) == []
