"""A photo as one or many windows: what the backbones see of it, and where."""

import dataclasses
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ovs_kernels import window_boxes

from .backbones import Backbone
from .errors import UserError
from .shared import Shared

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH_PIXELS = 2**20  # of the windows that a backbone sees at once: 5 of 448 x 448
ENSEMBLE = "224/112+448/224"


@dataclasses.dataclass(frozen=True)
class View:
    """All windows of a photo of one set-up.

    Attributes:
        features: [K, h, w, D], of length 1, in the space of the vocabulary.
        appearance: [K, h, w, E], of length 1: what the graph of LPOSS compares.
        boxes: [K, 4] int (y0, x0, y1, x1), in pixels of the working size.
        positions: [K * h * w, 2] (y, x) of the patches' centres.
    """

    features: Tensor
    appearance: Tensor
    boxes: Tensor
    positions: Tensor


def parse_windows(text: str) -> list[tuple[int, int] | None]:
    """Reads `none`, `224/112` (size and stride), `224/112+448/224` or `ensemble` (the same).

    Args:
        text: what the user wrote.

    Returns:
        One (size, stride) per set-up; None is the whole photo.

    Raises:
        UserError: it is written otherwise.
    """
    setups: list[tuple[int, int] | None] = []
    for part in (ENSEMBLE if text == "ensemble" else text).split("+"):
        match = re.fullmatch(r"\s*(\d{1,5})/(\d{1,5})\s*", part)
        size, stride = (int(match[1]), int(match[2])) if match else (0, 0)
        if part.strip() == "none":
            setups.append(None)
        elif 1 <= stride <= size and size >= 16:
            setups.append((size, stride))
        else:
            wanted = "none, ensemble, or SIZE/STRIDE with SIZE >= 16 and STRIDE from 1 to SIZE, joined by +"
            raise UserError("--windows", wanted, f"'{text}'")
    return setups


def _dense(backbone: Backbone, photo: "Image", image: Tensor, boxes: Tensor, whole: bool) -> Tensor:
    """[K, h, w, D] features of the windows, in batches."""
    if whole:
        return backbone.whole(photo, tuple(image.shape[1:]))[None]
    crops = [image[:, y0:y1, x0:x1] for y0, x0, y1, x1 in boxes.tolist()]  # all of one size
    step = max(1, _BATCH_PIXELS // crops[0][0].numel())
    return torch.cat([backbone.dense(torch.stack(crops[i : i + step])) for i in range(0, len(crops), step)])


def look(
    photo: "Image",
    image: Tensor,
    backbone: Backbone,
    graph_backbone: Backbone | None,
    setup: tuple[int, int] | None,
    shared: Shared | None = None,
) -> View:
    """Features of all windows of one set-up.

    Args:
        photo: mode RGB, any size.
        image: [3, H, W] in [0, 1], the photo at the working size.
        backbone: in whose space the vocabulary is.
        graph_backbone: whose features the graph compares; None is `backbone`. Where the two have different
            grids, the features of `backbone` are resampled to the other grid before they are normalised.
        setup: size and stride of the windows, None for the whole photo.
        shared: keeps the features of the photo at hand for other methods.

    Returns:
        The view; a photo smaller than a window is one window of its own size.
    """
    height, width = image.shape[1:]
    size, stride = setup or (max(height, width),) * 2
    boxes = torch.as_tensor(window_boxes((height, width), size, stride))

    def dense(model: Backbone) -> Tensor:
        def make() -> Tensor:
            return _dense(model, photo, image, boxes, setup is None)

        return make() if shared is None else shared.seen((id(model), photo.size, height, width, setup), make)

    features = appearance = dense(backbone)
    patch = backbone.patch
    if graph_backbone is not None:
        patch = graph_backbone.patch
        appearance = dense(graph_backbone)
        grid = appearance.shape[1:3]
        if grid != features.shape[1:3]:
            planes = features.permute(0, 3, 1, 2)
            features = F.interpolate(planes, grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return View(
        F.normalize(features, dim=-1),
        F.normalize(appearance, dim=-1),
        boxes,
        patch_centres(boxes, tuple(appearance.shape[1:3]), patch),
    )


def whole_view(features: Tensor, size: tuple[int, int], patch: int) -> View:
    """The view of a whole photo whose features are known already.

    Args:
        features: [h, w, D], of any length.
        size: (H, W), the working size.
        patch: side of a patch.

    Returns:
        What `look` returns for the same features, without windows and without a second backbone.
    """
    unit, boxes = F.normalize(features, dim=-1)[None], torch.tensor([[0, 0, *size]])
    return View(unit, unit, boxes, patch_centres(boxes, tuple(features.shape[:2]), patch))


def patch_centres(boxes: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Pixel positions of the patches of all windows.

    Args:
        boxes: [K, 4] (y0, x0, y1, x1).
        grid: (h, w) patches of a window.
        patch: side of a patch.

    Returns:
        [K * h * w, 2] float32 (y, x).
    """
    rows = boxes[:, 0, None] + patch // 2 + patch * torch.arange(grid[0])
    columns = boxes[:, 1, None] + patch // 2 + patch * torch.arange(grid[1])
    shape = (len(boxes), *grid)
    places = torch.stack([rows[:, :, None].expand(shape), columns[:, None, :].expand(shape)], -1)
    return places.reshape(-1, 2).float()
