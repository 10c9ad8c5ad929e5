"""Fixtures that all tests share: where a test runs, at which instruction-set level, with which seed."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))  # for `import oracles`

# Emulated memory is the host's; must be set before the emulator reads it.
os.environ.setdefault("CUDAEMU_HOST_POINTERS", "1")

from ovs_kernels import _native  # noqa: E402

ISA_LEVELS = ("baseline", "v2", "v3", "v4")


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow") or "slow" in config.getoption("-m"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


def emulator_path() -> Path | None:
    """The emulated module: in $OVS_EMULATOR_DIR, else in build/emulator of the repository."""
    folder = Path(os.environ.get("OVS_EMULATOR_DIR") or TESTS.parent / "build" / "emulator")
    return next(iter(sorted(folder.glob("_C_emulated*.so"))), None)


def _without_emulator() -> None:
    """Skips, or fails where a missing emulator is a mistake of the set-up."""
    reason = "emulator not built: run `make emulator`"
    if os.environ.get("OVS_REQUIRE_EMULATOR", "0") not in ("", "0"):
        pytest.fail(f"OVS_REQUIRE_EMULATOR is set, and {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def emulated_module():
    """`_C_emulated`: the CUDA sources compiled for the CPU emulator of tests/cuda_emulator."""
    path = emulator_path()
    if path is None:
        _without_emulator()
    spec = importlib.util.spec_from_file_location("_C_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda), "emulated"])
def device(request):
    """Where the operator runs: "cpu", "cuda", or "emulated" (CPU tensors, emulated CUDA kernels)."""
    if request.param == "cuda" and not _native.cuda_available():
        pytest.skip("no CUDA device" if not torch.cuda.is_available() else "built without CUDA kernels")
    if request.param != "emulated":
        yield request.param
        return
    with _native.use_emulator(request.getfixturevalue("emulated_module")):
        yield request.param


@pytest.fixture
def to_device(device):
    """Moves a tensor to where the operator finds it."""
    return lambda tensor: tensor.cuda() if device == "cuda" else tensor


@pytest.fixture(params=ISA_LEVELS)
def isa(request):
    """Each instruction-set level that is compiled in and that this processor runs, forced for the test."""
    if request.param not in _native.isa_levels():
        pytest.skip(f"level {request.param} is not compiled in, or this processor cannot run it")
    with _native.use_isa(request.param):
        yield request.param


@pytest.fixture(params=["numpy", "torch", pytest.param("cupy", marks=pytest.mark.cuda)])
def xp(request):
    """Array kinds that public functions take: a pair (from a torch tensor, back to a torch tensor)."""
    if request.param == "numpy":
        return (lambda tensor: tensor.numpy()), torch.from_numpy
    if request.param == "torch":
        return (lambda tensor: tensor), (lambda tensor: tensor)
    cupy = pytest.importorskip("cupy", reason="cupy is not installed")
    if not _native.cuda_available():
        pytest.skip("no CUDA device, or built without CUDA kernels")
    return (lambda tensor: cupy.asarray(tensor.numpy())), (lambda array: torch.from_numpy(cupy.asnumpy(array)))


@pytest.fixture
def num_threads():
    """Sets torch's thread count; the old one comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(20240901)
    np.random.seed(20240901)  # noqa: NPY002  (libraries that use the global generator)
