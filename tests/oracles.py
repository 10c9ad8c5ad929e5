"""Second witnesses: dense matrices in NumPy float64, from the equations, sharing nothing with the package."""

import numpy as np

SMALLEST_NORMAL_FLOAT32 = float(np.finfo(np.float32).tiny)


def lab_features(image):
    """[3, H, W] sRGB in [0, 1] -> [3, H, W] (L/100, a/128, b/128), by scikit-image."""
    from skimage.color import rgb2lab

    lab = rgb2lab(np.moveaxis(np.asarray(image, np.float64), 0, -1))
    return np.moveaxis(lab, -1, 0) / np.array([100.0, 128.0, 128.0])[:, None, None]


def dense_weights(features, window, tau):
    """The whole affinity matrix of an image.

    features: [F, H, W]. Returns W [HW, HW].
    """
    num_features, height, width = features.shape
    z = np.asarray(features, np.float64).reshape(num_features, -1).T
    rows, columns = np.divmod(np.arange(height * width), width)
    reach = window // 2
    near = np.abs(rows[:, None] - rows) <= reach
    near &= np.abs(columns[:, None] - columns) <= reach
    np.fill_diagonal(near, False)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        distance = np.sqrt(((z[:, None] - z) ** 2).sum(-1))
        weights = np.exp(-distance / tau)
    usable = near & (weights >= SMALLEST_NORMAL_FLOAT32)  # false for NaN
    return np.where(usable, weights, 0.0)


def degrees(weights):
    """Row sums, 1 for an isolated pixel."""
    sums = weights.sum(1)
    return np.where(sums > 0, sums, 1.0)


def system_matrix(weights, alpha):
    """I - alpha D^-1/2 W D^-1/2."""
    scale = 1.0 / np.sqrt(degrees(weights))
    return np.eye(len(weights)) - alpha * scale[:, None] * weights * scale


def conjugate_gradients(matrix, y, max_iter, tol):
    """One right-hand side, start at zero, recursive residual. Returns x, steps, |r| / |y|."""
    x = np.zeros_like(y)
    norm_y = np.linalg.norm(y)
    if norm_y == 0:
        return x, 0, 0.0
    r, p = y.copy(), y.copy()
    rho = r @ r
    step = 0
    while step < max_iter:
        step += 1
        q = matrix @ p
        a = rho / (p @ q)
        x += a * p
        r -= a * q
        if np.linalg.norm(r) <= tol * norm_y:
            break
        rho_next = r @ r
        p = r + (rho_next / rho) * p
        rho = rho_next
    return x, step, np.linalg.norm(r) / norm_y


def propagate(scores, features, *, window, tau, alpha, mode, max_iter=10, tol=1e-6):
    """scores [C, H, W] -> X [C, H, W], steps [C]: literal CG in "official", a direct solve in "exact"."""
    scores = np.asarray(scores, np.float64)
    matrix = system_matrix(dense_weights(features, window, tau), alpha)
    columns = scores.reshape(len(scores), -1)
    if mode == "exact":
        return np.linalg.solve(matrix, columns.T).T.reshape(scores.shape), None
    solved = [conjugate_gradients(matrix, y, max_iter, tol) for y in columns]
    return np.stack([x for x, _, _ in solved]).reshape(scores.shape), np.array([steps for _, steps, _ in solved])
