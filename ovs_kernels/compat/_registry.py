"""What each drop-in stands for: the one list that `ovs_kernels.compat.patch` reads.

A new drop-in is one entry of `DROP_INS`. Two entries must not name the same module and attribute: patches of different
drop-ins can then be undone in any order.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module

# What a call of somebody's code may raise and be left alone for.
CALL_ERRORS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, RuntimeError)
CALL_ERRORS += (TypeError, ValueError)


class LeaveAlone(Exception):
    """Raised by `Attributes.adapt`: the original is not what the drop-in stands for; the text says why."""


@dataclass(frozen=True)
class Attributes:
    """Functions or classes to replace inside of modules that otherwise stay as they are.

    Args:
        modules: full names, or patterns as of `fnmatch` ("*.pamr").
        stand_in: our module, in which the replacements have the names of the originals. It also serves those of
            `modules` that are no patterns, where the original is not installed or cannot be imported.
        names: of the attributes.
        adapt: gets the original and ours and returns what to put in its place, or raises `LeaveAlone`.
        optional: packages that the originals need only for what is replaced ("cupy"). While the modules are imported,
            those that are not installed, or raise when they are imported, are represented by objects that raise
            ImportError when they are used.
    """

    modules: tuple[str, ...]
    stand_in: str
    names: tuple[str, ...]
    adapt: Callable[[object, object], object] = lambda original, ours: ours
    optional: tuple[str, ...] = ()

    def matches(self, name: str) -> bool:
        """Whether the module of this name is meant."""
        return any(fnmatchcase(name, pattern) for pattern in self.modules)


@dataclass(frozen=True)
class DropIn:
    """One drop-in.

    Args:
        modules: original name -> our module, which takes its place; the original is not executed.
        attributes: what is replaced inside of other modules.
    """

    modules: Mapping[str, str] = field(default_factory=dict)
    attributes: tuple[Attributes, ...] = ()

    def load(self) -> None:
        """Imports our modules, so that nothing can fail half-way."""
        for name in (*self.modules.values(), *(group.stand_in for group in self.attributes)):
            import_module(name)


def _pamr_defaults(original: type) -> tuple[int, tuple[int, ...]]:
    import torch

    if not (isinstance(original, type) and issubclass(original, torch.nn.Module)):
        raise LeaveAlone("it is no torch.nn.Module")
    parameters = list(inspect.signature(original).parameters.values())
    if [parameter.name for parameter in parameters] != ["num_iter", "dilations"]:
        raise LeaveAlone("its constructor does not take (num_iter, dilations)")
    num_iter, dilations = (parameter.default for parameter in parameters)
    if inspect.Parameter.empty in (num_iter, dilations):
        return 1, (1,)  # never used: ours is only called as the original can be
    return num_iter, tuple(dilations)


def adapt_pamr(original: type, ours: type) -> type:
    """Ours with the defaults of the original, if both give the same numbers on a small example.

    There are modules of this name and constructor that compute something else.
    """
    import torch

    num_iter, dilations = _pamr_defaults(original)
    x = torch.arange(3 * 9 * 11, dtype=torch.float32).mul(0.7).sin().reshape(1, 3, 9, 11)
    mask = torch.arange(2 * 9 * 11, dtype=torch.float32).mul(1.3).cos().reshape(1, 2, 9, 11)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            theirs = original(num_iter=2, dilations=[1, 3])(x, mask)
            difference = (theirs - ours(2, [1, 3])(x, mask)).abs().max().item()
    except CALL_ERRORS as error:
        raise LeaveAlone(f"its results could not be compared ({type(error).__name__}: {error})") from error
    if not difference <= 1e-4:  # NaN either
        raise LeaveAlone(f"it computes something else: results differ by {difference:.2g}")
    if (num_iter, dilations) == (1, (1,)):
        return ours

    def init(self, num_iter=num_iter, dilations=dilations):
        ours.__init__(self, num_iter, dilations)

    def reduce(self, _protocol):  # pickle finds ours under this name
        return object.__new__, (ours,), self.__dict__

    attributes = {"__init__": init, "__reduce_ex__": reduce, "__module__": ours.__module__, "__doc__": ours.__doc__}
    return type(ours.__name__, (ours,), attributes)


def adapt_lposs(original: object, ours: Callable) -> Callable:
    """Ours with the defaults of the original, see `_originals`."""
    from ._originals import published_lposs

    return published_lposs(original, ours)


def adapt_featup(original: object, ours: type) -> type:
    """Ours, if the original is the published module, see `_originals`."""
    from ._originals import published_featup

    return published_featup(original, ours)


DROP_INS: dict[str, DropIn] = {
    "featup": DropIn(
        modules={"featup.adaptive_conv_cuda.adaptive_conv": "ovs_kernels.compat.featup"},
        attributes=(
            # FeatUp, and SegEarth-OV, which has a copy.
            Attributes(
                ("featup.upsamplers", "simfeatup_dev.upsamplers"),
                "ovs_kernels.compat.featup",
                ("JBULearnedRange", "JBUOne", "JBUStack"),
                adapt_featup,
            ),
        ),
    ),
    "lposs": DropIn(
        attributes=(
            Attributes(
                ("segmentation.evaluation.lposs_eval",),
                "ovs_kernels.compat.lposs",
                ("dfs_search", "get_lposs_laplacian", "get_lposs_plus_laplacian", "perform_lp"),
                adapt_lposs,
                optional=("cupy", "cupyx", "faiss", "kornia"),
            ),
        )
    ),
    "pamr": DropIn(
        attributes=(
            # NACLIP, SCLIP: pamr; TCL: models.tcl.pamr; FreeDA: models.freeda.pamr; 1-stage-wseg: models.mods.pamr
            Attributes(("pamr", "*.pamr"), "ovs_kernels.compat.pamr", ("PAMR",), adapt_pamr),
        )
    ),
    "pydensecrf": DropIn(
        modules={
            "pydensecrf": "ovs_kernels.compat.pydensecrf",
            "pydensecrf.densecrf": "ovs_kernels.compat.pydensecrf.densecrf",
            "pydensecrf.eigen": "ovs_kernels.compat.pydensecrf.eigen",
            "pydensecrf.utils": "ovs_kernels.compat.pydensecrf.utils",
        }
    ),
}
