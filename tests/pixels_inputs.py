"""Inputs of the `lp_pixels` tests, their float64 definition, and how near it a kernel comes."""

import numpy as np
import torch

from ovs_kernels.reference import pixels as reference
from ovs_kernels.testing import synthetic_scene

# Float32 against the float64 definition, as a share of the largest magnitude. Spec 17.3 allows 1e-4; 1.0e-5
# was the worst on CPU (tau = 0.001). Most of it is the float32 Lab value, off by 2e-7, divided by tau.
SINGLE = 2e-5
# |Y - L X| / |Y| that float32 leaves however small tol is: X is 20 times as large as Y. Seen: 4.9e-6.
SINGLE_RESIDUAL = 1e-5
# Like SINGLE, in float64. Seen: 3.3e-14.
DOUBLE = 1e-12


def definition(scores, image, **options):
    """The float64 reference for [C, H, W] or [B, C, H, W]: result, iterations, residuals."""
    batched = scores.dim() == 4
    settings = {"window": 13, "tau": 0.01, "alpha": 0.95, "mode": "official", "max_iter": None, "tol": 1e-6}
    settings |= {"labels": False, "groups": None} | options
    color = settings.pop("color", "lab")
    groups = settings["groups"]
    num_classes = scores.shape[-3]
    settings["num_groups"] = num_classes if groups is None else max(groups) + 1
    settings["groups"] = None if groups is None else torch.tensor(groups)
    guide = image.cpu().double() / 255 if image.dtype == torch.uint8 else image.cpu().double()
    y = scores.detach().cpu().double()
    y, guide = (y, guide) if batched else (y[None], guide[None])
    parts = reference.lp_pixels(y, guide, lab=color == "lab", **settings)
    return parts if batched else tuple(part[0] for part in parts)


def case(height, width, num_classes, seed=1):
    """Scores and an image with strong, weak and vanishing links; outliers in both."""
    generator = torch.Generator().manual_seed(seed)
    image, scores, _ = synthetic_scene(height, width, num_classes, seed)
    scores = scores + 0.05 * torch.randn(scores.shape, generator=generator)
    image = (image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    outlier = (height // 2, width // 3)
    image[:, outlier[0], outlier[1]] = torch.tensor([1.0, 0.0, 1.0])
    scores[:, outlier[0], outlier[1]] *= 8.0
    return scores, image


def photo(height, width):
    """A real photo: scikit-image's cat."""
    from skimage import data, transform

    picture = transform.resize(data.chelsea(), (height, width), anti_aliasing=True)
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float()


def photo_scores(image, num_classes):
    """Scores that follow the photo's colours, with noise: what a segmenter gives before refinement."""
    generator = torch.Generator().manual_seed(11)
    prototypes = torch.rand(num_classes, 3, generator=generator)
    distance = ((image[None] - prototypes[:, :, None, None]) ** 2).sum(1).sqrt()
    return 0.2 - 0.1 * distance + 0.05 * torch.randn(distance.shape, generator=generator)
