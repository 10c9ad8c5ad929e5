"""The operators: one `torch.library` namespace, one file per family.

Every operator is a schema, a plan (all checks, then shapes and dtypes), an implementation for CPU and one for CUDA, a
fake built from the plan, and either a gradient or a documented refusal. Implementations, fake and tests call the same
plan, so nothing is checked twice and nobody slips past it through `torch.ops.ovs_kernels`.
"""

import dataclasses
from collections.abc import Callable

import torch

from .. import _native

_library = torch.library.Library("ovs_kernels", "DEF")


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A gradient formula, as `torch.library.register_autograd` takes it."""

    setup_context: Callable
    backward: Callable


@dataclasses.dataclass(frozen=True)
class Operator:
    """What is known of one registered operator.

    Attributes:
        name: its name in `torch.ops.ovs_kernels`, and the prefix of its functions in the compiled module.
        samples: makes a list of argument tuples, for tests that run over all operators.
        differentiable: whether it has a gradient formula.
        public: whether `ovs_kernels` has a function of this name; False for the transpose of one that has.
    """

    name: str
    samples: Callable[[str], list[tuple]]
    differentiable: bool
    public: bool

    @property
    def native_cpu(self) -> bool:
        """Whether the compiled module has a CPU kernel for it."""
        return hasattr(_native.module(), f"{self.name}_cpu")

    @property
    def native_cuda(self) -> bool:
        """Whether the compiled module has a CUDA kernel for it."""
        return hasattr(_native.module(), f"{self.name}_cuda")


OPERATORS: dict[str, Operator] = {}


def register(
    schema: str,
    *,
    cpu: Callable,
    cuda: Callable,
    fake: Callable,
    gradient: Gradient | None,
    samples: Callable[[str], list[tuple]],
    public: bool = True,
) -> None:
    """Registers an operator with torch and in `OPERATORS`.

    Args:
        schema: torch schema, `name(arguments) -> results`.
        cpu: implementation for CPU tensors.
        cuda: implementation for CUDA tensors; under the test emulator it gets CPU tensors.
        fake: shapes and dtypes of the results, for `torch.compile` and meta tensors.
        gradient: formula, or None for an operator without one: its results then do not require grad.
        samples: see `Operator`.
        public: see `Operator`.
    """
    name = schema.partition("(")[0]

    def on_cpu(*args):
        with torch.no_grad():
            return (cpu if _native.emulator() is None else cuda)(*args)

    def on_cuda(*args):
        with torch.no_grad():
            return cuda(*args)

    _library.define(schema)
    _library.impl(name, on_cpu, "CPU")
    _library.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"ovs_kernels::{name}", fake, lib=_library)
    if gradient is None:
        _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    else:
        torch.library.register_autograd(
            f"ovs_kernels::{name}", gradient.backward, setup_context=gradient.setup_context, lib=_library
        )
    OPERATORS[name] = Operator(name, samples, gradient is not None, public)


# Each registers its operators.
from . import (  # noqa: E402
    adaptive,  # noqa: F401
    affinity,  # noqa: F401
    attention,  # noqa: F401
    crf,  # noqa: F401
    graph,  # noqa: F401
    markov,  # noqa: F401
    metrics,  # noqa: F401
    pamr,  # noqa: F401
    pixels,  # noqa: F401
    propagate,  # noqa: F401
    templates,  # noqa: F401
    transport,  # noqa: F401
    upsample,  # noqa: F401
    windows,  # noqa: F401
)
