"""The compiled module: loading it, what it was built with, and what it can run here.

Nothing is loaded at import. The first operator call (or a question asked here) imports `ovs_kernels._C`, after torch,
so that both use one OpenMP runtime. A missing or broken module is not fatal on a CPU: operators run the reference and
say so once.

Environment:
    OVS_KERNELS_REFERENCE=1  never use compiled code (to compare, or to bisect a problem).
    OVS_KERNELS_ISA=v2|v3|v4 use this instruction-set level instead of the best one.
"""

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

import torch

# The same numbers as csrc/common/dtype.h and csrc/common/solve.h; tests/test_op_contract.py compares them.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
ISA_NUMBERS = {"baseline": 0, "v2": 2, "v3": 3, "v4": 4}
SOLVE_MODES = {"official": 0, "exact": 1}
HUGE_PAGES_FROM = 8 * 2**20  # bytes of a tensor

_emulator: ModuleType | None = None
_forced_isa: str | None = None


@functools.cache
def _load() -> tuple[ModuleType | None, Exception | None]:
    try:
        return importlib.import_module("ovs_kernels._C"), None
    except ImportError as error:
        return None, error


def module() -> ModuleType | None:
    """The compiled module, or None when it is missing or OVS_KERNELS_REFERENCE=1."""
    if os.environ.get("OVS_KERNELS_REFERENCE", "0") not in ("", "0"):
        return None
    return _load()[0]


def load_error() -> Exception | None:
    """Why the compiled module could not be imported, or None."""
    return _load()[1]


def build_info() -> dict[str, object]:
    """How the compiled module was built; empty when there is none."""
    compiled = _load()[0]
    if compiled is None:
        return {}
    info = dict(compiled.build_info())
    info["isa_levels"] = info["isa_levels"].split(",")
    return info


@functools.cache
def isa_levels() -> list[str]:
    """Instruction-set levels that are compiled in and that this processor runs, slowest first."""
    compiled = _load()[0]
    if compiled is None:
        return []
    best = compiled.detected_isa()
    return [level for level in compiled.build_info()["isa_levels"].split(",") if ISA_NUMBERS[level] <= best]


def isa() -> str:
    """The level in use: a forced one, OVS_KERNELS_ISA, or the best; "" without a compiled module.

    Raises:
        RuntimeError: the level asked for is not compiled in or not supported by this processor.
    """
    levels = isa_levels()
    wanted = _forced_isa or os.environ.get("OVS_KERNELS_ISA") or (levels[-1] if levels else "")
    if wanted and wanted not in levels:
        raise RuntimeError(
            f"OVS_KERNELS_ISA: expected one of {', '.join(levels) or 'no level (no compiled module)'}, got {wanted}"
        )
    return wanted


@contextlib.contextmanager
def use_isa(level: str) -> Iterator[None]:
    """Runs the CPU kernels of one instruction-set level inside the block (tests, benchmarks)."""
    global _forced_isa
    previous, _forced_isa = _forced_isa, level
    try:
        yield
    finally:
        _forced_isa = previous


@contextlib.contextmanager
def use_emulator(emulated: ModuleType) -> Iterator[None]:
    """Inside the block CPU tensors go to the CUDA half of `emulated`, the module of tests/cuda_emulator."""
    global _emulator
    previous, _emulator = _emulator, emulated
    try:
        yield
    finally:
        _emulator = previous


def emulator() -> ModuleType | None:
    """The emulated module inside `use_emulator`, else None."""
    return _emulator


def cpu_module() -> ModuleType | None:
    """The compiled module for CPU tensors; None means the reference, said once unless it was asked for."""
    compiled = module()
    if compiled is None and load_error() is not None:
        _warn_no_module()
    elif compiled is not None and not isa_levels():
        return None
    return compiled


@functools.cache
def _warn_no_module() -> None:
    warnings.warn(
        f"ovs_kernels: the compiled module cannot be loaded ({load_error()}); the slow reference is used on the CPU. "
        "Reinstall with `pip install --force-reinstall ovs-kernels`, or see `python -m ovs_kernels`.",
        RuntimeWarning,
        stacklevel=2,
    )


def cuda_module(operator: str) -> ModuleType:
    """The compiled module for CUDA tensors.

    Raises:
        RuntimeError: there is none, or it was built without CUDA; says what to do.
    """
    if _emulator is not None:
        return _emulator
    compiled = _load()[0]
    if compiled is None:
        raise RuntimeError(
            f"{operator}: a CUDA tensor needs the compiled module, which cannot be loaded: {load_error()}; "
            "reinstall with `pip install --force-reinstall ovs-kernels`"
        ) from load_error()
    if not hasattr(compiled, f"{operator}_cuda"):
        raise RuntimeError(
            f"{operator}: this build of ovs_kernels has no CUDA kernels; install where nvcc is found, with "
            "`pip install -C cmake.define.OVS_CUDA=ON .`, or move the tensors to the CPU"
        )
    return compiled


def reference_forced() -> bool:
    """Whether OVS_KERNELS_REFERENCE asks for the reference on every device."""
    return os.environ.get("OVS_KERNELS_REFERENCE", "0") not in ("", "0")


def use_reference(on_cuda: bool, compute_dtype: torch.dtype | None = None) -> bool:
    """Whether the definition answers a call instead of a kernel.

    Args:
        on_cuda: whether the tensors of the call are on a CUDA device.
        compute_dtype: given by families whose CUDA kernels compute in float32 only: float64 is the definition's there.
    """
    if on_cuda:
        return compute_dtype == torch.float64 or reference_forced()
    return cpu_module() is None


def call_cpu(
    operator: str, device: torch.device, arguments: Mapping[str, object], *, sized_by_threads: bool = True
) -> object:
    """Runs `operator`_cpu of the compiled module over scratch memory of the size that it asks for.

    Args:
        operator: name of the operator.
        device: that of the tensors, for the scratch memory.
        arguments: keyword arguments of the kernel but workspace, workspace_bytes, num_threads and isa.
        sized_by_threads: whether the size of the scratch memory depends on the number of threads.

    Returns:
        What the kernel returns.
    """
    return prepare_cpu(operator, device, arguments, sized_by_threads=sized_by_threads)()


def prepare_cpu(
    operator: str,
    device: torch.device,
    arguments: Mapping[str, object],
    first: Mapping[str, object] | None = None,
    *,
    sized_by_threads: bool = True,
) -> Callable[..., object]:
    """`prepare_cuda` for the CPU: a function that runs `operator`_cpu, for operators that run in stages."""
    native = cpu_module()
    threads = {"num_threads": torch.get_num_threads()}
    size = getattr(native, f"{operator}_cpu_workspace_bytes")
    num_bytes = size(**arguments, **(first or {}), **(threads if sized_by_threads else {}))
    workspace = allocate((num_bytes,), torch.uint8, device)
    kernel = getattr(native, f"{operator}_cpu")

    def run(**stage) -> object:
        return kernel(
            **arguments,
            **stage,
            **threads,
            workspace=workspace.data_ptr(),
            workspace_bytes=num_bytes,
            isa=ISA_NUMBERS[isa()],
        )

    return run


def prepare_cuda(
    operator: str, device: torch.device, arguments: Mapping[str, object], first: Mapping[str, object] | None = None
) -> Callable[..., None]:
    """A function that runs `operator`_cuda on the current stream, for operators that run in stages.

    All its calls share one scratch memory, of the size that the operator asks for with `arguments` and those of the
    `first` stage; the keywords of a call are those of the stage, beside `arguments`.
    """
    native = cuda_module(operator)
    num_bytes = getattr(native, f"{operator}_cuda_workspace_bytes")(**arguments, **(first or {}))
    workspace = allocate((num_bytes,), torch.uint8, device)
    kernel = getattr(native, f"{operator}_cuda")
    where = {"device": device.index or 0, "stream": current_stream(device)}

    def run(**stage) -> None:
        kernel(**arguments, **stage, **where, workspace=workspace.data_ptr(), workspace_bytes=num_bytes)

    return run


def call_cuda(operator: str, device: torch.device, arguments: Mapping[str, object]) -> None:
    """Runs `operator`_cuda once, on the current stream of `device`; arguments as in `call_cpu`.

    `arguments` of `call_cpu` and of `call_cuda` differ where a kernel computes in float32 only: it takes no `dtype`.
    """
    prepare_cuda(operator, device, arguments)()


def call(operator: str, device: torch.device, arguments: Mapping[str, object], on_cuda: bool) -> object:
    """`call_cuda` or `call_cpu`, for kernels whose arguments and sizes are the same on both."""
    return call_cuda(operator, device, arguments) if on_cuda else call_cpu(operator, device, arguments)


def cuda_available() -> bool:
    """Whether CUDA kernels are compiled in and torch sees a device."""
    return bool(build_info().get("cuda")) and torch.cuda.is_available()


def current_stream(device: torch.device) -> int:
    """Handle of torch's current stream on a CUDA device; 0 under the emulator, which has one."""
    if device.type != "cuda":
        return 0
    get = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # absent from CPU builds of torch
    index = device.index if device.index is not None else torch.cuda.current_device()
    return get(index) if get is not None else torch.cuda.current_stream(index).cuda_stream


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor from torch's allocator, for results and scratch memory.

    On a CPU the system is asked for huge pages: fresh memory is touched with fewer page faults then.
    """
    tensor = torch.empty(shape, dtype=dtype, device=device)
    compiled = _load()[0]
    if compiled is not None and tensor.device.type == "cpu" and tensor.nbytes >= HUGE_PAGES_FROM:
        compiled.advise_huge_pages(address=tensor.data_ptr(), num_bytes=tensor.nbytes)
    return tensor
