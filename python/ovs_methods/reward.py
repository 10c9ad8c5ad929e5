"""What PnP-OVSS's layer, head, threshold and blur are tuned by without masks: does a map show CLIP its class?

The photo is multiplied by a candidate mask of each class that is in it. A class counts where CLIP is surer of it, among
the classes that are in the photo, when it sees the masked photo than when it sees nothing.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from .backbones import ClipBackbone
from .methods.pnp_maps import blur_matrix

TEMPERATURE = 0.01  # of CLIP's cosines
_BATCH = 16  # images that go through CLIP together


@functools.lru_cache(maxsize=32)
def _enlarge(side: int, patches: int, sigma: float) -> Tensor:
    """Bicubic enlargement of an axis, then the Gaussian, [side, patches] float64."""
    each = torch.eye(patches, dtype=torch.float64)[None, :, :, None]  # a row of the identity is an image of one column
    cubic = F.interpolate(each, (side, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T
    return torch.from_numpy(blur_matrix(side, sigma)) @ cubic


def candidate_masks(maps: Tensor, side: int, threshold: float, blur: float) -> Tensor:
    """Maps to masks: threshold, bicubic enlargement, blur, range to [0, 1], threshold.

    Args:
        maps: [K, P, P] float, not negative.
        side: of the square masks.
        threshold: of maps that are brought to [0, 1], before and after.
        blur: standard deviation of the Gaussian as a share of the side.

    Returns:
        [K, side, side] float32 of zeros and ones; a map that is constant gives zeros.
    """
    unit = _unit(maps.double())
    unit = torch.where(unit >= threshold, unit, 0)
    matrix = _enlarge(side, maps.shape[-1], blur * side)
    wide = matrix @ unit @ matrix.T
    varies = unit.flatten(1).amax(1) > 0
    return ((_unit(wide) >= threshold) & varies[:, None, None]).float()


def _unit(maps: Tensor) -> Tensor:
    low, high = maps.flatten(1).aminmax(dim=1)
    span = high - low
    return (maps - low[:, None, None]) / torch.where(span > 0, span, 1)[:, None, None]


class ClipReward:
    """CLIP as a judge of masks.

    Args:
        clip: the model.
        texts: for each class its embedding of length 1.

    Attributes:
        side: of the square photos and masks.
    """

    def __init__(self, clip: ClipBackbone, texts: dict[str, Tensor]):
        self._clip, self._texts = clip, texts
        self.side = clip.side
        self._nothing = clip.encode_images(torch.zeros(1, 3, self.side, self.side))

    def __call__(self, image: Tensor, names: list[str], masks: Tensor) -> int:
        """How many classes of a photo CLIP is surer of when it sees what the mask leaves than when it sees nothing.

        Args:
            image: [3, side, side] RGB in [0, 1].
            names: [K] of the classes in the photo.
            masks: [K, side, side] of zeros and ones.

        Returns:
            From 0 to K; 0 for a single class, which is as sure either way.
        """
        texts = torch.stack([self._texts[name] for name in names])
        masked = self._clip.normalized(image[None]) * masks[:, None]
        seen = torch.cat([self._clip.encode_images(part) for part in masked.split(_BATCH)])
        sure = torch.softmax(seen @ texts.T / TEMPERATURE, 1).diagonal()
        before = torch.softmax(self._nothing @ texts.T / TEMPERATURE, 1)[0]
        covers = masks.flatten(1).any(1)  # an empty mask shows nothing, whatever the rounding of a batch says
        return int(((sure > before) & covers).sum())
