"""PnP-OVSS: photos to labels, as `ovs segment` and `ovs evaluate` want it."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .backbones import load_matcher
from .backbones.dinov2 import available_cpus
from .backbones.matching import ImageTextMatcher
from .images import read_photo, to_bytes
from .methods.pnp_maps import postprocess
from .methods.pnp_ovss import (
    PnpPreset,
    best_of_words,
    layer_and_head,
    make_prompts,
    saliency_maps,
)
from .options import SegmentOptions
from .options_pnp import BACKGROUND, check_side, is_uncovered, pnp_classes
from .outputs import Stopwatch
from .pipeline import Seen, Segmenter
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image


class PnpSegmenter(Segmenter):
    """A model that matches images and text, the classes and the constants: photos in, labels out.

    Args:
        options: what was asked for.

    Attributes:
        matcher: the model.
        constants: of the method, with the layer and the head.
    """

    def __init__(self, options: SegmentOptions):
        torch.set_num_threads(options.threads or available_cpus())
        self.options = options = options.resolved()
        self.clock = Stopwatch()
        self._seen = None
        self.uncovered = is_uncovered(options.background)
        classes = pnp_classes(options.classes, options.background)
        with self.clock("load model"):
            self.matcher: ImageTextMatcher = load_matcher(options.backbone, options.weights)
        constants = options.pnp_constants()
        layer, head = layer_and_head(self.matcher, constants)
        self.constants: PnpPreset = dataclasses.replace(constants, layer=layer, head=head)
        self.side = check_side(options.short_side, self.matcher)
        self._groups = [index for index, words in enumerate(classes.values()) for _ in words]
        words = [word for several in classes.values() for word in several]
        self._prompts = make_prompts(self.matcher, words, self.constants)
        names = [BACKGROUND, *classes] if self.uncovered else list(classes)
        self.vocabulary = Vocabulary(names, list(range(len(names))), torch.empty(len(words), 0), self._groups)

    def read(self, path: Path, clock: Stopwatch, photo: "Image | None" = None) -> Seen:
        """A photo, read already or not, and its pixels as the model takes them."""
        with clock("read"):
            photo = read_photo(path) if photo is None else photo
            return Seen(photo, self.matcher.pixels(photo, self.side)[0], [], None)

    def labels(self, path: Path, clock: Stopwatch, photo: "Image | None" = None) -> tuple[Seen, np.ndarray]:
        """As `Segmenter.labels`."""
        seen = self.read(path, clock, photo)
        with clock(self.options.method):
            maps = saliency_maps(self.matcher, seen.image[None], self._prompts, self.constants)
            maps = best_of_words(maps, self._groups)
        with clock("blur + CRF" if self.constants.crf else "blur"):
            names = ("variant", "threshold", "blur", "crf")
            arguments = {name: getattr(self.constants, name) for name in names}
            photo = to_bytes(seen.photo, (seen.photo.height, seen.photo.width))
            return seen, postprocess(maps.cpu(), photo, background=self.uncovered, **arguments).numpy()
