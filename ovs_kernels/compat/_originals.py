"""How `patch` knows LPOSS's functions and FeatUp's modules, or code that only has their names."""

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ._registry import CALL_ERRORS, LeaveAlone

# The names that the published functions of LPOSS use, helpers included: code that uses others computes something else.
LPOSS_NAMES = {
    "normalize_connection_graph": "array cp csr_matrix diagonal diags isinf isnan reshape sqrt sum",
    "get_pixel_connections": "append arange cat device logical_and permute product range reshape rgb_to_lab shape "
    "stack sum tensor to torch where",
    "get_lposs_laplacian": "METRIC_INNER_PRODUCT StandardGpuResources T arange asarray cat cdist cp csr_matrix device "
    "enumerate exp eye faiss flatten gather int64 knn_gpu normalize_connection_graph ones repeat repeat_interleave "
    "setDefaultNullStreamAllDevices setTempMemory shape stack to torch unsqueeze view",
    "get_lposs_plus_laplacian": "asarray cp csr_matrix exp eye get_pixel_connections normalize_connection_graph shape "
    "sqrt torch",
    "dfs_search": "cg s_linalg",
    "perform_lp": "T as_tensor asarray cp dfs_search enumerate shape torch zeros",
}


def published_lposs(original: object, ours: Callable) -> Callable:
    """Ours with the defaults of the original, if all functions beside the original are the published ones."""
    if not isinstance(original, types.FunctionType):
        raise LeaveAlone("it is no function")
    beside = original.__globals__
    for name, used in LPOSS_NAMES.items():
        function = beside.get(name)
        if not isinstance(function, types.FunctionType):
            raise LeaveAlone(f"{name} is not beside it, as published")
        difference = set(_names(function.__code__)) ^ set(used.split())
        if difference:
            raise LeaveAlone(f"{name} is not the published one: {min(difference)} is used in one of them only")
    search = inspect.signature(beside["dfs_search"])
    if list(search.parameters) != ["L", "Y", "tol", "maxiter"]:
        raise LeaveAlone("dfs_search does not take (L, Y, tol, maxiter)")
    if original.__name__ == "perform_lp":
        defaults = [search.parameters[name].default for name in ("tol", "maxiter")]
        return ours if defaults == [1e-6, 10] else _with_search(ours, *defaults)
    return _with_defaults(original, ours)


def _names(code: types.CodeType) -> Iterator[str]:
    """Of globals and attributes that the code uses, comprehensions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _with_search(ours: Callable, tol: float, maxiter: int | None) -> Callable:
    from .lposs import propagate_all

    @functools.wraps(ours)
    def perform_lp(L, preds):
        return propagate_all(L, preds, tol, maxiter)

    return perform_lp


def _with_defaults(original: Callable, ours: Callable) -> Callable:
    theirs = inspect.signature(original)
    if list(theirs.parameters) != list(inspect.signature(ours).parameters):
        raise LeaveAlone(f"its arguments are ({', '.join(theirs.parameters)})")
    changed = {
        name: parameter.default
        for name, parameter in theirs.parameters.items()
        if parameter.default != inspect.signature(ours).parameters[name].default
    }
    if not changed:
        return ours
    if inspect.Parameter.empty in changed.values():
        raise LeaveAlone("it has no defaults where the published one has")

    @functools.wraps(ours)
    def with_defaults(*args, **kwargs):
        bound = theirs.bind(*args, **kwargs)
        bound.apply_defaults()
        return ours(*bound.args, **bound.kwargs)

    return with_defaults


def published_featup(original: object, ours: type[nn.Module]) -> type[nn.Module]:
    """Ours, if both take the same arguments and give the same numbers for the same parameters on a small example."""
    if not (isinstance(original, type) and issubclass(original, nn.Module)):
        raise LeaveAlone("it is no torch.nn.Module")
    arguments = [list(inspect.signature(kind).parameters) for kind in (original, ours)]
    if arguments[0] != arguments[1]:
        raise LeaveAlone(f"its constructor takes ({', '.join(arguments[0])})")
    # (arguments of the constructor, side of the source, side of the guidance)
    settings, side, large = ((3, 1, 4, 2, 2), 4, 8) if "key_dim" in arguments[0] else ((1,), 3, 48)
    source = torch.arange(side * side, dtype=torch.float32).mul(1.3).cos().reshape(1, 1, side, side)
    guidance = torch.arange(3 * large * large, dtype=torch.float32).mul(0.7).sin().reshape(1, 3, large, large)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the published meshgrid's
            theirs, mine = original(*settings).eval(), ours(*settings).eval()
            mine.load_state_dict(theirs.state_dict())
            difference = (theirs(source, guidance) - mine(source, guidance)).abs().max().item()
    except CALL_ERRORS as error:
        reason = " ".join(str(error).split())
        raise LeaveAlone(f"its results could not be compared ({type(error).__name__}: {reason})") from error
    if not difference <= 1e-4:  # NaN either
        raise LeaveAlone(f"it computes something else: results differ by {difference:.2g}")
    return ours
