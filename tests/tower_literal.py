"""CLIP's image tower and its forms of dense features as published: open_clip's own forward pass, hooks, whole matrices.

Nothing here is shared with the package. What replaces a block is computed in float64.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def images(height, width, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def standardized(batch, mean=CLIP_MEAN, std=CLIP_STD):
    """By numpy, in float64."""
    array = (batch.double().numpy() - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    return torch.from_numpy(array).float()


def black(batch, height, width):
    """Padded at the bottom and the right."""
    out = torch.zeros(len(batch), 3, height, width)
    out[:, :, : batch.shape[2], : batch.shape[3]] = batch
    return out


def cubic(side_in, side_out):
    """[side_out, side_in] weights of bicubic resizing (a = -0.75, half-pixel centres), one entry at a time."""
    weights = np.zeros((side_out, side_in))
    for row in range(side_out):
        place = (row + 0.5) * side_in / side_out - 0.5
        first = int(np.floor(place))
        for tap in range(first - 1, first + 3):
            x, a = abs(place - tap), -0.75
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            weights[row, min(max(tap, 0), side_in - 1)] += near if x <= 1 else far
    return weights


def resized(table, prefix, stored, grid):
    """A table of positions for another grid, in float64."""
    square = table[prefix:].double().numpy().reshape(*stored, -1)
    square = np.einsum("ij,kl,jld->ikd", cubic(stored[0], grid[0]), cubic(stored[1], grid[1]), square)
    return torch.cat([table[:prefix], torch.from_numpy(square).float().flatten(0, 1)])


def image_tower(open_clip, folder, batch):
    """open_clip's own image tower, its positions resized for the batch, and the grid of patches."""
    visual = open_clip.create_model(f"local-dir:{folder}").eval().requires_grad_(False).visual
    patch = visual.conv1.kernel_size[0]
    grid = tuple(side // patch for side in batch.shape[2:])
    if grid != tuple(visual.grid_size):
        table = resized(visual.positional_embedding, 1, tuple(visual.grid_size), grid)
        visual.positional_embedding = nn.Parameter(table)
    return visual, grid


def patches_of(visual, batch):
    """What the tower makes of its patches, [B, N, D], while it runs as it is; hooks of the caller change blocks."""
    seen = []
    handle = visual.ln_post.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        visual(standardized(batch))
    handle.remove()
    return (seen[0][:, 1:] @ visual.proj).detach()


def values_only(attention, arguments, keywords, output):
    """A hook of an attention: its output is the projected values."""
    x = arguments[0] if arguments else keywords["query"]
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    return attention.out_proj(projected.chunk(3, -1)[2]), None


def maskclip(open_clip, folder, batch):
    """The whole image tower runs; the last attention is replaced by the value path."""
    visual, grid = image_tower(open_clip, folder, batch)
    visual.transformer.resblocks[-1].attn.register_forward_hook(values_only, with_kwargs=True)
    return patches_of(visual, batch).reshape(len(batch), *grid, -1)


def parts_of(block, tokens):
    """Queries, keys and values of what goes into a block, [T, 3, heads, d] float64."""
    attention = block.attn
    weight, bias = attention.in_proj_weight.double().numpy(), attention.in_proj_bias.double().numpy()
    flat = block.ln_1(tokens).double().numpy() @ weight.T + bias
    return flat.reshape(len(tokens), 3, attention.num_heads, -1)


def key_key(open_clip, folder, batch, omega=None):
    """The last block puts out out_proj(softmax(k k^T / sqrt(d) + omega) v), head by head; omega(grid) is [T, T]."""
    visual, grid = image_tower(open_clip, folder, batch)
    bias = 0.0 if omega is None else omega(grid)

    def keys_to_keys(block, arguments, output):
        out = np.zeros(arguments[0].shape)
        for image, tokens in enumerate(arguments[0]):
            parts = parts_of(block, tokens)
            width = parts.shape[-1]
            for head in range(parts.shape[2]):
                keys, values = parts[:, 1, head], parts[:, 2, head]
                maps = np.exp(keys @ keys.T / np.sqrt(width) + bias)
                out[image][:, head * width : (head + 1) * width] = maps / maps.sum(1, keepdims=True) @ values
        return block.attn.out_proj(torch.from_numpy(out).float())

    visual.transformer.resblocks[-1].register_forward_hook(keys_to_keys)
    return patches_of(visual, batch).reshape(len(batch), *grid, -1)


def gaussian(grid):
    """NACLIP's omega, [1 + N, 1 + N], a pair of patches at a time; nothing for the class token."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    omega = np.zeros((1 + len(places), 1 + len(places)))
    for i, (y, x) in enumerate(places):
        for j, (other_y, other_x) in enumerate(places):
            omega[1 + i, 1 + j] = np.exp(-((y - other_y) ** 2 + (x - other_x) ** 2) / (2 * 5.0**2))
    return omega


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def on_guide(features, grid):
    """[B, h, w, D] resized as the published codes do it: bilinear, align_corners False; the same for its own grid."""
    if tuple(features.shape[1:3]) == tuple(grid):
        return features
    planes = features.permute(0, 3, 1, 2)
    return F.interpolate(planes, grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def undecided(guide, form):
    """[B, h, w] patches with a pair so near to the threshold that float32 may take it for the other side."""
    masks = []
    for rows in guide.double():
        g = unit(rows.flatten(0, 1))
        similar = g @ g.T
        margin = similar - (0.2 if form == "clip-dinoiser" else 1.2 * similar.mean())
        masks.append((margin.abs() < 2e-6).any(1).reshape(rows.shape[:2]))
    return torch.stack(masks)


def weighted_pool(features, guide):
    """CLIP-DINOiser's pooling of [B, h, w, D] by a guide [B, h, w, G], with the whole matrix of each window."""
    out = torch.empty_like(features)
    for image, (f, g) in enumerate(zip(features.double(), guide.double(), strict=True)):
        g = unit(g.flatten(0, 1))
        similar = g @ g.T
        similar[similar < 0.2] = 0.0
        pooled = similar @ f.flatten(0, 1) / (similar.sum(1, keepdim=True) + 1e-6)
        out[image] = pooled.float().reshape(f.shape)
    return out


def proxy(open_clip, folder, batch, guide, keep=None):
    """ProxyCLIP on a guide [B, h, w, G]: the last block's values, head by head, under the guide's attention.

    `keep` (rows, columns) of the guide's grid are left after resizing.
    """
    visual, own = image_tower(open_clip, folder, batch)
    grid = tuple(guide.shape[1:3])
    keep = grid if keep is None else keep

    def guided(block, arguments, output):
        out = []
        for tokens, g in zip(arguments[0], guide.double(), strict=True):
            g = unit(g[: keep[0], : keep[1]].flatten(0, 1))
            similar = g @ g.T
            similar = (similar - similar.mean() * 1.2) * 3.0
            similar[similar < 0] = -torch.inf
            maps = similar.softmax(-1)
            heads = []
            for values in torch.from_numpy(parts_of(block, tokens[1:])[:, 2]).permute(1, 0, 2):  # [h * w, d] of each
                values = on_guide(values.reshape(1, *own, -1), grid)[0, : keep[0], : keep[1]]
                heads.append(maps @ values.flatten(0, 1))
            mixed = block.attn.out_proj(torch.cat(heads, -1).float())
            out.append(torch.cat([torch.zeros_like(mixed[:1]), mixed]))  # a class token, dropped later
        return torch.stack(out)

    visual.transformer.resblocks[-1].register_forward_hook(guided)
    return patches_of(visual, batch).reshape(len(batch), *keep, -1)


def dino(timm, name, weights, batch, output):
    """What timm's own forward pass makes of the patches: the third part of the last qkv, or the normed tokens."""
    vit = timm.create_model(name, num_classes=0, img_size=tuple(batch.shape[2:])).eval()
    state = torch.load(weights)
    patch, stored = vit.patch_embed.patch_size[0], int((state["pos_embed"].shape[1] - 1) ** 0.5)
    grid = tuple(side // patch for side in batch.shape[2:])
    if grid != (stored, stored):
        state["pos_embed"] = resized(state["pos_embed"][0], 1, (stored, stored), grid)[None]
    vit.load_state_dict(state)
    seen = []
    vit.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        tokens = vit.forward_features(standardized(batch, vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"]))
    made = tokens if output == "tokens" else seen[0].chunk(3, -1)[2]
    return made[:, 1:].reshape(len(batch), *grid, -1)
