"""What every registered operator owes: torch's own operator checks, a fake that agrees, and a decided gradient."""

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import ovs_kernels
from ovs_kernels import _native
from ovs_kernels._ops import OPERATORS

SAMPLES = [(name, index) for name, operator in OPERATORS.items() for index in range(len(operator.samples("cpu")))]


def call(name, arguments):
    return getattr(torch.ops.ovs_kernels, name)(*arguments)


def tensors_of(arguments):
    """The tensors among the arguments of a sample, those in lists too."""
    lists = [argument if isinstance(argument, list) else [argument] for argument in arguments]
    return [item for items in lists for item in items if isinstance(item, torch.Tensor)]


def map_tensors(function, argument):
    if isinstance(argument, list):
        return [map_tensors(function, item) for item in argument]
    return function(argument) if isinstance(argument, torch.Tensor) else argument


@pytest.mark.parametrize(("name", "index"), SAMPLES)
def test_opcheck(name, index):
    arguments = OPERATORS[name].samples("cpu")[index]
    torch.library.opcheck(getattr(torch.ops.ovs_kernels, name).default, arguments)


def call_on_meta(name, arguments):
    """Results without data. Sizes that depend on data are symbols, which plain meta tensors cannot have."""
    try:
        return call(name, [map_tensors(lambda tensor: tensor.to("meta"), argument) for argument in arguments])
    except RuntimeError as error:
        if "data-dependent shape" not in str(error):
            raise
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        return call(name, [map_tensors(mode.from_tensor, argument) for argument in arguments])


@pytest.mark.parametrize(("name", "index"), SAMPLES)
def test_fake_and_real_agree(name, index):
    arguments = OPERATORS[name].samples("cpu")[index]
    real = call(name, arguments)
    meta = call_on_meta(name, arguments)
    if isinstance(real, torch.Tensor):
        real, meta = [real], [meta]
    for one, two in zip(real, meta, strict=True):
        assert one.dim() == two.dim()
        for size, expected in zip(one.shape, two.shape, strict=True):
            assert isinstance(expected, torch.SymInt) or size == expected
        assert one.dtype == two.dtype
        assert one.stride() == two.stride()


@pytest.mark.parametrize("name", OPERATORS)
def test_gradient_is_decided(name):
    samples = OPERATORS[name].samples("cpu")
    if not any(tensor.is_floating_point() for s in samples for tensor in tensors_of(s)):
        assert not OPERATORS[name].differentiable  # integers have no gradient
        return
    wants = [s for s in samples if any(tensor.requires_grad for tensor in tensors_of(s))]
    assert wants, f"{name} has no sample that requires grad"
    for arguments in wants:
        assert call(name, arguments)[0].requires_grad == OPERATORS[name].differentiable


@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.public])
def test_public_docstring_has_the_fixed_lines(name):
    text = getattr(ovs_kernels, name).__doc__
    for line in ("Args:", "Returns:", "Raises:", "Devices/dtypes:", "Differentiable:", "Deterministic:", "Memory:"):
        assert line in text, f"{name}: no {line}"


@pytest.mark.parametrize("name", OPERATORS)
def test_native_on_the_cpu(name):
    assert OPERATORS[name].native_cpu


def test_numbers_of_the_enums_are_those_of_the_core():
    csrc = Path(__file__).parents[1] / "csrc"
    text = (csrc / "common/dtype.h").read_text() + (csrc / "common/solve.h").read_text()
    numbers = {name.lower(): int(number) for name, number in re.findall(r"\bk(\w+) = (\d+)", text)}
    for dtype, number in _native.DTYPES.items():
        assert numbers[str(dtype).removeprefix("torch.")] == number
    for name, number in {**_native.ISA_NUMBERS, **_native.SOLVE_MODES}.items():
        assert numbers[name] == number
