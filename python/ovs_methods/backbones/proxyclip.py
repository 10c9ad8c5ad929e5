"""ProxyCLIP: the attention of CLIP's last block is that of the guide's patches to each other.

With unit features g of the guide, `s_ij = gamma (<g_i, g_j> - beta mean)`, the mean over all pairs of the window; pairs
with s_ij < 0 are left out, the softmax of the others weights the values of CLIP's last block, which were resized to the
guide's grid before. The output projection follows, without residuals and without MLP. All heads share the
weights, so they are pooled side by side.
"""

from pathlib import Path

from torch import Tensor

from ovs_kernels import affinity_pool

from .clip import projected_flat
from .core import Backbone
from .guided import GuidedClip, on_grid

BETA, GAMMA = 1.2, 3.0


class ProxyClip(GuidedClip):
    """Dense features of an open_clip ViT, as in ProxyCLIP.

    Args:
        model: as of `ClipBackbone`; published with `ViT-B-16:openai`.
        guide: whose similarities become the attention; published with the output tokens of DINO ViT-B/8.
        weights: as of `ClipBackbone`.
        flag: as of `ClipBackbone`.

    Raises:
        MissingDependency: open_clip_torch is not installed.
        UserError: no such model, not a ViT, or its weights cannot be had.
    """

    def __init__(self, model: str, guide: Backbone, weights: Path | None = None, flag: str = "--weights"):
        super().__init__(model, weights, flag, guide)
        self.features = "proxyclip"
        self.identity = {**self.text_identity, "features": self.features, "guide": guide.identity}

    def _pooled(self, images: Tensor, guide: Tensor | None, grid: tuple[int, int]) -> Tensor:
        tokens, own = self._before_last(images)
        last = self._blocks[-1]
        values, seen = on_grid(projected_flat(last, tokens[:, 1:], "v"), own, guide, grid)
        pooled = affinity_pool(values, seen, form="proxyclip", beta=BETA, gamma=GAMMA)
        return self._to_text_space(last.ls_1(last.attn.out_proj(pooled))).unflatten(1, grid)
