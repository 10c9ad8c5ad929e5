"""Peak memory of one implementation over its loaded inputs.

On a CPU a fresh process runs it, because what an earlier run has left in the allocator would hide what this one takes:

    python benchmarks/memory.py FAMILY quick|full CASE IMPLEMENTATION THREADS
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20
TIMEOUT_SECONDS = 600

Measured = tuple[float | None, float | None, str]  # extra and peak in 1e6 bytes, method


@dataclasses.dataclass(frozen=True)
class Request:
    """How memory is measured in a run.

    Attributes:
        family: whose cases.
        which: "quick" or "full".
        device: of the run.
        only_ours: leave the peers out.
    """

    family: str
    which: str
    device: torch.device
    only_ours: bool


def on_cuda(run: Callable[[], object], inputs_bytes: int) -> Measured:
    """What torch's allocator hands out at most during a call; the peak counts the inputs of that call, too."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    return extra / 1e6, (extra + inputs_bytes) / 1e6, "torch.cuda.max_memory_allocated"


def in_fresh_process(request: Request, case: str, implementation: str) -> Measured:
    """Runs this file; None, None and the reason where that fails."""
    command = [sys.executable, __file__, request.family, request.which, case, implementation]
    done = subprocess.run(
        [*command, str(torch.get_num_threads())], capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return None, None, f"failed ({done.returncode}): {last}"
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


def _give_back_free_memory() -> None:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def of_call(run: Callable[[], object]) -> Measured:
    """Peak resident memory of this process during a call."""
    _give_back_free_memory()
    reset = _reset_peak()
    try:
        before = _status_bytes("VmRSS")
    except OSError:  # no /proc
        unit = 1 if sys.platform == "darwin" else 1024
        before = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return (peak - before) / 1e6, peak / 1e6, "growth of ru_maxrss"
    run()
    peak = _status_bytes("VmHWM")
    return max(0, peak - before) / 1e6, peak / 1e6, "VmHWM - VmRSS" + ("" if reset else ", peak not reset")


def _main() -> None:
    family, which, case_name, name, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    import families

    device = torch.device("cpu")

    def find(cases, case_name):
        pairs = [(case, i) for case in cases for i in case.implementations if i.name == name]
        case, found = next(pair for pair in pairs if case_name in (None, pair[0].name))
        return case, found.run

    with torch.inference_mode():
        small, run_small = find(families.load(family).cases("quick", device), None)
        run_small(small.inputs())  # loads libraries, starts threads
        case, run = find(families.load(family).cases(which, device), case_name)
        inputs = case.inputs()
        print(json.dumps(of_call(lambda: run(inputs))))
    sys.stdout.flush()
    os._exit(0)  # nothing to tidy up, and gigabytes to take apart


if __name__ == "__main__":
    _main()
