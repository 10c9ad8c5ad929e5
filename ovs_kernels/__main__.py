"""`python -m ovs_kernels`: what is installed, how it was built, and what runs natively on this machine."""

import os
import platform
from importlib import metadata

import numpy
import torch

from . import __version__, _native
from ._ops import OPERATORS

ENVIRONMENT = ("OVS_KERNELS_REFERENCE", "OVS_KERNELS_ISA", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> list[tuple[str, str]]:
    cuda_of_torch = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return [
        ("ovs_kernels", __version__),
        ("torch", f"{torch.__version__} ({cuda_of_torch})"),
        ("numpy", numpy.__version__),
        (
            "cupy",
            next((v for v in map(_version_of, ("cupy-cuda13x", "cupy-cuda12x", "cupy")) if v[0].isdigit()), "-"),
        ),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]


def _build() -> list[tuple[str, str]]:
    info = _native.build_info()
    if not info:
        error = _native.load_error()
        return [("compiled module", f"cannot be loaded: {type(error).__name__}: {error}")]
    cuda = f"{info['cuda']} for {str(info['cuda_archs']).replace(',', ' ')}" if info["cuda"] else "no"
    return [
        ("compiled module", f"{info['version']}, {info['build_type']}, {info['compiler']}"),
        ("OpenMP", "yes" if info["openmp"] else "no: one thread"),
        ("CUDA kernels", cuda),
        ("CPU levels", " ".join(info["isa_levels"])),
    ]


def _machine() -> list[tuple[str, str]]:
    usable = _native.isa_levels()
    try:
        used = _native.isa()
    except RuntimeError as error:
        used = str(error)
    rows = [
        ("CPU levels usable", " ".join(usable) or "none"),
        ("CPU level used", used or "none: the reference runs"),
        ("threads", str(torch.get_num_threads())),
    ]
    if not torch.cuda.is_available():
        return [*rows, ("CUDA devices", "none that torch can use")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        rows.append((f"cuda:{index}", f"{device.name}, sm_{device.major}{device.minor}, {memory:.1f} GiB"))
    return rows


def _operators() -> list[tuple[str, str]]:
    rows = []
    for name, operator in sorted(OPERATORS.items()):
        on_cpu = "native" if operator.native_cpu and _native.isa_levels() else "reference"
        if not operator.native_cuda:
            on_cuda = "not in this build"
        else:
            on_cuda = "native" if _native.cuda_available() else "native, but no device here"
        rows.append((name, f"cpu: {on_cpu}; cuda: {on_cuda}"))
    return rows


def report() -> str:
    """The whole report as text."""
    environment = [(name, os.environ[name]) for name in ENVIRONMENT if name in os.environ]
    sections = {
        "Versions": _versions(),
        "Build": _build(),
        "Machine": _machine(),
        "Environment": environment,
        "Operators": _operators(),
    }
    lines = []
    for title, rows in sections.items():
        if rows:
            lines += [title, *(f"  {name:<18} {value}" for name, value in rows), ""]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    print(report())
