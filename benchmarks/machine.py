"""What the numbers were measured on: a description of the machine and its measured roofs."""

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Roofs:
    """The best rates seen on this machine with the threads of the run; float32.

    Attributes:
        read_gb_s: sum of a large array.
        matmul_gflop_s: product of two square matrices.
        exp_g_s: exponentials of an array that fits the cache, 1e9 per second.
    """

    read_gb_s: float
    matmul_gflop_s: float
    exp_g_s: float

    def floor(self, flops: float, num_bytes: float, exps: float) -> dict[str, object]:
        """Seconds below which nothing can come that does this work, and what sets them."""
        seconds = {
            "read": num_bytes / (self.read_gb_s * 1e9),
            "matmul": flops / (self.matmul_gflop_s * 1e9),
            "exp": exps / (self.exp_g_s * 1e9),
        }
        bound = max(seconds, key=seconds.get)
        return {"seconds": seconds[bound], "bound": bound}


def _best_seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    run()
    best = float("inf")
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def measure_roofs(device: torch.device, quick: bool) -> Roofs:
    """Measures them; a second or two, less if `quick`."""
    cuda = device.type == "cuda"
    floats = (256 if cuda else 16 if quick else 64) * 2**20
    side = 8192 if cuda else 512 if quick else 2048
    repeats = 3 if quick else 7
    array = torch.ones(floats, device=device)
    read = 4 * floats / _best_seconds(array.sum, repeats, device)
    del array
    matrix = torch.rand(side, side, device=device)
    product = torch.empty_like(matrix)
    matmul = 2 * side**3 / _best_seconds(lambda: torch.mm(matrix, matrix, out=product), repeats, device)
    values = torch.rand(2**26 if cuda else 2**20, device=device)
    target = torch.empty_like(values)
    exp = values.numel() / _best_seconds(lambda: torch.exp(values, out=target), 10 * repeats, device)
    return Roofs(read / 1e9, matmul / 1e9, exp / 1e9)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> dict[str, object]:
    """The commit of the source tree, and whether files differ from it (recorded results aside)."""
    changes = _git("status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results")
    return {"commit": _git("rev-parse", "HEAD") or "unknown", "dirty": None if changes is None else bool(changes)}


def cpu_model() -> str:
    """The processor's name for itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(device: torch.device) -> dict[str, object]:
    """Machine, versions and settings of this run."""
    import ovs_kernels
    from ovs_kernels import _native

    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count()
    described = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "threads": torch.get_num_threads(),
        "isa": _native.isa(),
        "isa_levels": _native.isa_levels(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "scipy": _version("scipy"),
        "ovs_kernels": ovs_kernels.__version__,
        "build": _native.build_info(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "gpu": properties.name,
            "gpu_memory_gb": properties.total_memory / 1e9,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return described


def command_line() -> str:
    """How this run was started, without the folders of the interpreter and the script."""
    shown = []
    for argument in sys.argv[1:]:
        shown.append(argument if "/" not in argument else Path(argument).name)
    return " ".join(["python benchmarks/run.py", *shown])
