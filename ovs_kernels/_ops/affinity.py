"""Operator `affinity_pool`: plan, CPU and CUDA bridges, fake."""

import dataclasses
import functools
import math

import torch
from torch import Tensor

from .. import _native
from .._checks import (
    FLOATS,
    dtype_text,
    expect_between,
    expect_choice,
    expect_dtype,
    expect_positive,
    expect_rank,
    expect_shape,
    same_device,
    wrong_type,
    wrong_value,
)
from ..reference import affinity as reference
from . import register

NAME = "affinity_pool"
FORMS = {"clip_dinoiser": 0, "proxyclip": 1}  # the core's AffinityForm


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked arguments of one call."""

    num_windows: int
    num_patches: int
    num_features: int
    num_guide: int
    compute_dtype: torch.dtype

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return self.num_windows * self.num_patches * self.num_features == 0


def plan(features, guide, form, threshold, beta, gamma, assume_normalized) -> Plan:
    """All checks of `affinity_pool`; the arguments are those of the schema."""
    expect_choice(NAME, "form", form, FORMS)
    expect_dtype(NAME, "features", features, FLOATS)
    expect_dtype(NAME, "guide", guide, FLOATS)
    if (features.dtype == torch.float64) != (guide.dtype == torch.float64):
        wrong_type(NAME, "guide", f"{dtype_text(features.dtype)} (that of features)", dtype_text(guide.dtype))
    pattern = expect_rank(NAME, "features", features, "N, D", "n, N, D").replace("D", "G")
    sizes = dict(zip(("n", "N")[-features.dim() + 1 :], features.shape[:-1], strict=True))
    found = expect_shape(NAME, "guide", guide, pattern, sizes, "features")
    same_device(NAME, features=features, guide=guide)
    if found["G"] == 0:
        wrong_value(NAME, "guide", "at least one guide feature", "G=0")
    expect_between(NAME, "threshold", threshold, -math.inf, math.inf)
    expect_between(NAME, "beta", beta, -math.inf, math.inf)
    expect_positive(NAME, "gamma", gamma)
    compute = torch.float64 if features.dtype == torch.float64 else torch.float32
    return Plan(found.get("n", 1), found["N"], features.shape[-1], found["G"], compute)


def _by_reference(p: Plan, features, guide, form, threshold, beta, gamma, assume_normalized) -> Tensor:
    pooled = reference.affinity_pool(
        features.to(p.compute_dtype).contiguous(),
        guide.to(p.compute_dtype).contiguous(),
        form=form,
        threshold=threshold,
        beta=beta,
        gamma=gamma,
        assume_normalized=assume_normalized,
    )
    return pooled.to(features.dtype).contiguous()


def _pool(features, guide, form, threshold, beta, gamma, assume_normalized, on_cuda: bool) -> Tensor:
    p = plan(features, guide, form, threshold, beta, gamma, assume_normalized)
    if p.empty:
        return torch.empty(features.shape, dtype=features.dtype, device=features.device)
    if _native.reference_forced() if on_cuda else _native.cpu_module() is None:
        return _by_reference(p, features, guide, form, threshold, beta, gamma, assume_normalized)
    rows, guide_rows = (tensor.to(p.compute_dtype).contiguous() for tensor in (features, guide))
    pooled = _native.allocate(tuple(features.shape), p.compute_dtype, features.device)
    arguments = {
        "features": rows.data_ptr(),
        "guide": guide_rows.data_ptr(),
        "pooled": pooled.data_ptr(),
        "num_windows": p.num_windows,
        "num_patches": p.num_patches,
        "num_features": p.num_features,
        "num_guide": p.num_guide,
        "form": FORMS[form],
        "threshold": threshold,
        "beta": beta,
        "gamma": gamma,
        "normalize": not assume_normalized,
        "dtype": _native.DTYPES[p.compute_dtype],
    }
    _native.call(NAME, features.device, arguments, on_cuda)
    return pooled.to(features.dtype)


def _fake(features, guide, form, threshold, beta, gamma, assume_normalized) -> Tensor:
    plan(features, guide, form, threshold, beta, gamma, assume_normalized)
    return features.new_empty(features.shape)


def _samples(device: str) -> list[tuple]:
    generator = torch.Generator().manual_seed(11)
    features = torch.randn(2, 13, 5, generator=generator).to(device)
    guide = torch.randn(2, 13, 6, generator=generator).to(device)
    leaf = features[0].clone().requires_grad_()
    return [
        (features, guide, "clip_dinoiser", 0.2, 1.2, 3.0, False),
        (leaf, guide[0], "proxyclip", 0.2, 1.2, 3.0, False),
        (features.transpose(0, 1).half(), guide.transpose(0, 1), "proxyclip", 0.2, 0.5, 3.0, False),
        (features.double(), guide.double(), "clip_dinoiser", -1.0, 1.2, 3.0, True),
    ]


register(
    "affinity_pool(Tensor features, Tensor guide, str form, float threshold, float beta, float gamma, "
    "bool assume_normalized) -> Tensor",
    cpu=functools.partial(_pool, on_cuda=False),
    cuda=functools.partial(_pool, on_cuda=True),
    fake=_fake,
    gradient=None,
    samples=_samples,
)
