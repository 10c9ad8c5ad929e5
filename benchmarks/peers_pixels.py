"""What `lp_pixels` is measured against: the same computation with PyTorch's own operations, and as published.

Each takes the caller's tensors, scores [C, H, W] float32 and image [3, H, W] float32, and returns scores [C, H, W].
All are float32 but the published procedure, which solves in float64.
"""

import dataclasses
import inspect
import warnings

import torch
from torch import Tensor

from ovs_kernels.reference import pixel_features

SMALLEST_WEIGHT = torch.finfo(torch.float32).tiny


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of `lp_pixels` that the peers know; max_iter None is "as many as tol needs"."""

    window: int
    tau: float
    alpha: float
    max_iter: int | None
    tol: float

    @property
    def radius(self) -> int:
        """Of the window."""
        return self.window // 2


def forward_offsets(radius: int) -> list[tuple[int, int]]:
    """One (dy, dx) of each pair of opposite offsets."""
    span = range(-radius, radius + 1)
    return [(dy, dx) for dy in range(radius + 1) for dx in span if dy > 0 or dx > 0]


def half_planes(image: Tensor, options: Options) -> Tensor:
    """The normalised links, alpha D^-1/2 W D^-1/2: one plane per forward offset.

    Args:
        image: [3, H, W].
        options: of the graph.

    Returns:
        [K, H + R, W + 2 R]: at [k, R + y, R + x] the link of pixel (y, x) to (y, x) + offset k. Zero where a link
        leaves the image, so that the planes can be read shifted without any test.
    """
    radius = options.radius
    features = pixel_features(image[None], "lab")[0]
    _, height, width = features.shape
    offsets = forward_offsets(radius)
    planes = features.new_zeros(len(offsets), height + radius, width + 2 * radius)
    degree = features.new_zeros(height, width)
    inside = []
    for plane, (dy, dx) in zip(planes, offsets, strict=True):
        p = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        q = (slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
        squares = (features[(slice(None), *p)] - features[(slice(None), *q)]).square_().sum(0)
        weight = squares.sqrt_().mul_(-1 / options.tau).exp_()
        weight[weight < SMALLEST_WEIGHT] = 0
        plane[radius:, radius : radius + width][p] = weight
        degree[p] += weight
        degree[q] += weight
        inside.append((p, q))
    root = torch.where(degree > 0, degree, 1).rsqrt_()
    scaled = root * options.alpha
    for plane, (p, q) in zip(planes, inside, strict=True):
        plane[radius:, radius : radius + width][p].mul_(scaled[p]).mul_(root[q])
    return planes


def conjugate_gradients(apply, y: Tensor, class_axis: int, max_iter: int | None, tol: float) -> Tensor:
    """All classes at once, in place, each frozen when it has met `tol`.

    Args:
        apply: function (p, out) that writes L p.
        y: right-hand sides, contiguous; overwritten.
        class_axis: axis of the classes.
        max_iter: steps, or None for as many as `tol` needs.
        tol: relative residual.

    Returns:
        The solution, shaped like `y`.
    """
    axes = [axis for axis in range(y.dim()) if axis != class_axis]
    product = torch.empty_like(y)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.mul(a, b, out=product).sum(axes, keepdim=True)

    r, p = y, y.clone()
    x, q = torch.zeros_like(y), torch.empty_like(y)
    rho = dot(r, r)
    limit = rho * tol**2
    active = rho > 0
    step = 0
    while step != max_iter and (max_iter is not None or bool(active.any())):
        apply(p, q)
        curvature = dot(p, q)
        active = active & (curvature > 0)
        a = torch.where(active, rho / curvature, 0)
        x.addcmul_(a, p)
        r.addcmul_(a, q, value=-1)
        rho_next = dot(r, r)
        active = active & (rho_next > limit)
        torch.addcmul(r, torch.where(active, rho_next / rho, 0), p, out=p)
        rho = rho_next
        step += 1
    return x


def stencil(scores: Tensor, image: Tensor, options: Options, band: int | None = None) -> Tensor:
    """Shifted views: one fused multiply-add per offset and direction, all classes in each, nothing allocated.

    With `band`, pixels are taken in bands of rows small enough that the operands of the 168 operations stay in the
    cache; each operation then touches about `band` numbers.
    """
    classes, height, width = scores.shape
    radius = options.radius
    offsets = forward_offsets(radius)
    planes = half_planes(image, options)
    padded = scores.new_zeros(classes, height + 2 * radius, width + 2 * radius)
    group = classes if band is None else min(classes, 32)
    rows = height if band is None else max(1, min(height, band // (group * width)))

    def apply(p: Tensor, out: Tensor) -> None:
        padded[:, radius : radius + height, radius : radius + width] = p
        out.copy_(p)
        for c in range(0, classes, group):
            u = padded[c : c + group]
            for top in range(0, height, rows):
                bottom = min(height, top + rows)
                into = out[c : c + group, top:bottom]
                y0, y1 = radius + top, radius + bottom
                for plane, (dy, dx) in zip(planes, offsets, strict=True):
                    after, before = radius + dx, radius - dx
                    near = plane[y0:y1, radius : radius + width]
                    into.addcmul_(near, u[:, y0 + dy : y1 + dy, after : after + width], value=-1)
                    far = plane[y0 - dy : y1 - dy, before : before + width]
                    into.addcmul_(far, u[:, y0 - dy : y1 - dy, before : before + width], value=-1)

    return conjugate_gradients(apply, scores.clone(), 0, options.max_iter, options.tol)


def block_bands(scores: Tensor, image: Tensor, options: Options, segment: int = 8) -> Tensor:
    """The stencil as a batch of small dense products.

    The pixels of a row are cut into segments of 8. Those of one segment share a neighbourhood of 13 rows and 20
    columns, so that their links are a dense 8 x 260 block, two thirds of it in use, which multiplies the 260 x C
    scores of the neighbourhood. Columns of segments are copied out once per step; inside one, the neighbourhoods of
    consecutive rows are overlapping views.
    """
    classes, height, width = scores.shape
    radius = options.radius
    columns = -(-width // segment)
    span = segment + 2 * radius
    planes = half_planes(image, options)
    blocks = scores.new_zeros(columns, height, segment, options.window, span)
    pixel = torch.arange(segment, device=scores.device)
    padded_width = columns * segment
    link = scores.new_zeros(height, padded_width)
    for plane, (dy, dx) in zip(planes, forward_offsets(radius), strict=True):
        for sign, y0, x0 in ((1, radius, radius), (-1, radius - dy, radius - dx)):
            link[:, :width] = plane[y0 : y0 + height, x0 : x0 + width]
            at = radius + sign * dy, pixel + radius + sign * dx
            blocks[:, :, pixel, at[0], at[1]] = link.view(height, columns, segment).permute(1, 0, 2)
    blocks = blocks.view(columns, height, segment, options.window * span)

    padded = scores.new_zeros(height + 2 * radius, padded_width + 2 * radius, classes)
    column = scores.new_empty(height + 2 * radius, span, classes)
    neighbours = column.as_strided((height, options.window * span, classes), (span * classes, classes, 1))
    product = scores.new_empty(height, segment, classes)

    def apply(p: Tensor, out: Tensor) -> None:
        padded[radius : radius + height, radius : radius + width] = p
        for number, block in enumerate(blocks):
            left, right = number * segment, min(width, (number + 1) * segment)
            column.copy_(padded[:, left : left + span])
            torch.bmm(block, neighbours, out=product)
            torch.sub(p[:, left:right], product[:, : right - left], out=out[:, left:right])

    y = scores.permute(1, 2, 0).contiguous()
    x = conjugate_gradients(apply, y, 2, options.max_iter, options.tol)
    return x.permute(2, 0, 1).contiguous()


def sparse_csr(scores: Tensor, image: Tensor, options: Options) -> Tensor:
    """torch.sparse_csr with int32 indices (MKL on a CPU, cuSPARSE on CUDA) times all classes at once."""
    classes, height, width = scores.shape
    radius = options.radius
    planes = half_planes(image, options)
    forward = forward_offsets(radius)
    directed = [(dy, dx, k, 1) for k, (dy, dx) in enumerate(forward)]
    directed += [(-dy, -dx, k, -1) for k, (dy, dx) in enumerate(forward)]
    directed.sort()  # in this order the columns of a row ascend
    ys = torch.arange(height, device=scores.device, dtype=torch.int32)[:, None]
    xs = torch.arange(width, device=scores.device, dtype=torch.int32)[None]
    inside = torch.empty(len(directed), height, width, dtype=torch.bool, device=scores.device)
    values = scores.new_empty(len(directed), height, width)
    for number, (dy, dx, k, sign) in enumerate(directed):
        inside[number] = (ys + dy >= 0) & (ys + dy < height) & (xs + dx >= 0) & (xs + dx < width)
        y0, x0 = (radius, radius) if sign > 0 else (radius + dy, radius + dx)
        values[number] = planes[k, y0 : y0 + height, x0 : x0 + width]
    del planes
    mask = inside.flatten(1).t().contiguous()
    values = values.flatten(1).t()[mask]
    counts = torch.cat((mask.new_zeros(1, dtype=torch.int32), mask.sum(1, dtype=torch.int32)))
    row_starts = counts.cumsum(0, dtype=torch.int32)
    shifts = torch.tensor([dy * width + dx for dy, dx, _, _ in directed], dtype=torch.int32, device=scores.device)
    pixels = torch.arange(height * width, dtype=torch.int32, device=scores.device)
    columns = (pixels[:, None] + shifts)[mask]
    del mask, inside
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(
            row_starts, columns, values, size=(height * width,) * 2, check_invariants=False
        )

    def apply(p: Tensor, out: Tensor) -> None:
        torch.sub(p, matrix @ p, out=out)

    y = scores.reshape(classes, -1).t().contiguous()
    x = conjugate_gradients(apply, y, 1, options.max_iter, options.tol)
    return x.t().reshape(classes, height, width)


def array_modules(cuda: bool):
    """NumPy and SciPy's sparse and solver modules, or CuPy's; ImportError where they are missing."""
    if cuda:
        import cupy
        import cupyx.scipy.sparse
        import cupyx.scipy.sparse.linalg

        return cupy, cupyx.scipy.sparse, cupyx.scipy.sparse.linalg
    import numpy
    import scipy.sparse
    import scipy.sparse.linalg

    return numpy, scipy.sparse, scipy.sparse.linalg


def published(scores: Tensor, image: Tensor, options: Options) -> Tensor:
    """The published procedure: lists of row and column indices per offset, sparse matrices, one solve per class."""
    xp, sparse, linalg = array_modules(scores.is_cuda)
    height, width = image.shape[1:]
    lab = xp.asarray(pixel_features(image[None], "lab")[0].flatten(1).t().contiguous())
    ys, xs = (grid.ravel() for grid in xp.meshgrid(xp.arange(height), xp.arange(width), indexing="ij"))
    pixels = xp.arange(height * width)
    rows, columns = [], []
    for dy in range(-options.radius, options.radius + 1):
        for dx in range(-options.radius, options.radius + 1):
            if (dy, dx) == (0, 0):
                continue
            y, x = ys + dy, xs + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            rows.append(pixels[inside])
            columns.append((y * width + x)[inside])
    rows, columns = xp.concatenate(rows), xp.concatenate(columns)
    distance = xp.sqrt(((lab[rows] - lab[columns]) ** 2).sum(1))
    weights = xp.exp(-distance / xp.float32(options.tau))
    graph = sparse.coo_matrix((weights, (rows, columns)), shape=(height * width,) * 2).tocsr()
    del rows, columns, distance, weights
    graph = graph - sparse.diags(graph.diagonal())
    degree = xp.asarray(graph.sum(1)).ravel()
    degree[degree == 0] = 1
    root = sparse.diags(1 / xp.sqrt(degree))
    system = (sparse.eye(height * width, dtype=xp.float64) - options.alpha * (root @ graph @ root)).tocsr()
    del graph
    tolerance = "rtol" if "rtol" in inspect.signature(linalg.cg).parameters else "tol"
    settings = {tolerance: options.tol, "atol": 0.0, "maxiter": options.max_iter}
    y = xp.asarray(scores.flatten(1)).astype(xp.float64)
    x = xp.stack([linalg.cg(system, column, **settings)[0] for column in y])
    return torch.as_tensor(x.reshape(scores.shape), device=scores.device).float()
