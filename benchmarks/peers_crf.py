"""What `dense_crf` is measured against: pydensecrf, and the same lattice in PyTorch.

Each takes an image [3, H, W] uint8, probabilities [C, H, W] and the terms' settings, and returns Q [C, H, W].
"""

import dataclasses
import importlib
import math

import numpy as np
import torch
from torch import Tensor

KEY_BITS = 12  # of a coordinate: enough for the standard deviations of the cases


@dataclasses.dataclass(frozen=True)
class Settings:
    """Iterations, and standard deviations and weight of both terms."""

    iterations: int
    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float


def pydensecrf_missing() -> str | None:
    """Why pydensecrf cannot run here, or None."""
    try:
        importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        return f"pydensecrf cannot be imported ({error})"
    return None


def pydensecrf(image: Tensor, probabilities: Tensor, s: Settings) -> Tensor:
    """As its users call it; one thread is all it has."""
    dcrf = importlib.import_module("pydensecrf.densecrf")
    utils = importlib.import_module("pydensecrf.utils")
    num_classes, height, width = probabilities.shape
    field = dcrf.DenseCRF2D(width, height, num_classes)
    field.setUnaryEnergy(utils.unary_from_softmax(probabilities.numpy(), clip=1e-5))
    field.addPairwiseGaussian(sxy=s.gaussian_sxy, compat=s.gaussian_compat)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    field.addPairwiseBilateral(sxy=s.bilateral_sxy, srgb=s.bilateral_srgb, rgbim=pixels, compat=s.bilateral_compat)
    return torch.from_numpy(np.array(field.inference(s.iterations))).reshape(probabilities.shape)


class TorchLattice:
    """A permutohedral lattice with sparse products for splat and slice, and gathers for the blur."""

    def __init__(self, features: Tensor):
        num_points, d = features.shape
        lengths = [math.sqrt(2 / 3) * (d + 1) / math.sqrt((k + 1) * (k + 2)) for k in range(d)]
        steps = features.double() * torch.tensor(lengths, dtype=torch.float64, device=features.device)
        after = steps.flip(1).cumsum(1).flip(1)
        zero = steps.new_zeros(num_points, 1)
        numbers = torch.arange(1, d + 1, device=features.device)
        position = torch.cat((after, zero), 1) - torch.cat((zero, steps * numbers), 1)
        rounded = (position / (d + 1)).round()
        order = (position - rounded * (d + 1)).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(1) + rounded.sum(1, keepdim=True).long()
        turn = (rank > d).long() - (rank < 0).long()
        rank, base = rank - turn * (d + 1), (rounded.long() - turn) * (d + 1)
        ranked = torch.empty_like(position).scatter_(1, rank, position - base) / (d + 1)
        first = 1 - (ranked[:, :1] - ranked[:, -1:])
        weights = torch.cat((first, (ranked[:, :-1] - ranked[:, 1:]).flip(1)), 1)
        corner = torch.arange(d + 1, device=features.device)
        keys = base[:, None] + corner[:, None] - (d + 1) * (rank[:, None] > d - corner[:, None])
        places = 2 ** (KEY_BITS * torch.arange(d, device=features.device))
        packed = ((keys[..., :d] + 2 ** (KEY_BITS - 1)) * places).sum(-1)
        found, ids = packed.unique(return_inverse=True)
        self.alpha = 1 / (1 + 2.0**-d)
        starts = (d + 1) * torch.arange(num_points + 1, device=features.device)
        shape = (num_points, len(found))
        self.slice = torch.sparse_csr_tensor(starts, ids.reshape(-1), weights.reshape(-1).float(), shape)
        self.splat = self.slice.to_sparse_coo().t().coalesce().to_sparse_csr()
        self.neighbours = []
        for axis in range(d + 1):
            step = -places.sum() + ((d + 1) * places[axis] if axis < d else 0)
            self.neighbours.append([self._find(found, found + sign * step) for sign in (1, -1)])

    @staticmethod
    def _find(found: Tensor, wanted: Tensor) -> Tensor:
        at = torch.searchsorted(found, wanted).clamp_(max=len(found) - 1)
        return torch.where(found[at] == wanted, at, len(found))

    def filter(self, values: Tensor) -> Tensor:
        """[N, C] -> [N, C]."""
        at = values.new_zeros(self.slice.shape[1] + 1, values.shape[1])
        at[:-1] = self.splat @ values
        for one, two in self.neighbours:
            blurred = at[one]
            blurred += at[two]
            at[:-1].add_(blurred, alpha=0.5)
        return self.alpha * (self.slice @ at[:-1])


def pytorch(image: Tensor, probabilities: Tensor, s: Settings) -> Tensor:
    """Mean field with class-last rows."""
    num_classes, height, width = probabilities.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack((x, y), -1).reshape(-1, 2).to(image.device)
    colours = image.flatten(1).t() / s.bilateral_srgb
    kernels = []
    for features, compat in (
        (grid / s.gaussian_sxy, s.gaussian_compat),
        (torch.cat((grid / s.bilateral_sxy, colours), 1), s.bilateral_compat),
    ):
        lattice = TorchLattice(features)
        norm = lattice.filter(probabilities.new_ones(height * width, 1)).rsqrt()
        kernels.append((lattice, norm, compat))
    logits = probabilities.flatten(1).t().clamp(1e-5, 1).log().contiguous()
    q = logits.softmax(1)
    for _ in range(s.iterations):
        total = logits.clone()
        for lattice, norm, compat in kernels:
            total.addcmul_(compat * norm, lattice.filter(norm * q))
        q = total.softmax(1)
    return q.t().reshape(num_classes, height, width)
