"""What `transport_map` is measured against: the same iteration with PyTorch's matrix products, and POT.

Each takes cost [N, N] and distributions [C, N], float32, and returns the receivers' map [C, N]. K is built once per
call; all are float32 but POT, which computes in float64.
"""

import torch
from torch import Tensor


def kernel(cost: Tensor, epsilon: float) -> Tensor:
    """K = exp(-cost / epsilon), [N, N]."""
    return torch.mul(cost, -1 / epsilon).exp_()


def _paid(cost: Tensor, k: Tensor, mu: Tensor, nu: Tensor) -> Tensor:
    """nu_j sum_i mu_i cost_ij K_ij; overwrites K."""
    return nu.mul_(mu @ k.mul_(cost))


def class_rows(cost: Tensor, distributions: Tensor, epsilon: float, iterations: int) -> Tensor:
    """State [C, N]; K nu through a transposed view."""
    k, num_columns = kernel(cost, epsilon), cost.shape[1]
    nu = torch.ones_like(distributions)
    for _ in range(iterations):
        mu = distributions / (nu @ k.T)
        nu = torch.reciprocal(mu @ k).mul_(1 / num_columns)
    return _paid(cost, k, mu, nu)


def class_rows_stored(
    cost: Tensor, distributions: Tensor, epsilon: float, iterations: int, tol: float | None = None
) -> Tensor:
    """State [C, N]; K^T stored, too. With `tol` it stops as `transport_map` does."""
    k, num_columns = kernel(cost, epsilon), cost.shape[1]
    transposed = k.T.contiguous()
    nu, mu = torch.ones_like(distributions), None
    for _ in range(iterations):
        row_sums = nu @ transposed
        done = tol is not None and mu is not None and ((mu * row_sums - distributions).abs().sum(1) <= tol).all()
        mu = distributions / row_sums
        nu = torch.reciprocal(mu @ k).mul_(1 / num_columns)
        if done:
            break
    return _paid(cost, k, mu, nu)


def class_columns_stored(cost: Tensor, distributions: Tensor, epsilon: float, iterations: int) -> Tensor:
    """State [N, C]; K^T stored, too."""
    k, num_columns = kernel(cost, epsilon), cost.shape[1]
    transposed, a = k.T.contiguous(), distributions.T.contiguous()
    nu = torch.ones_like(a)
    for _ in range(iterations):
        mu = a / (k @ nu)
        nu = torch.reciprocal(transposed @ mu).mul_(1 / num_columns)
    return _paid(cost, k, mu.T, nu.T.contiguous())


def pot(cost: Tensor, distributions: Tensor, epsilon: float, iterations: int) -> Tensor:
    """POT's Sinkhorn-Knopp, a histogram per class; the uniform marginal is its source, so the cost is transposed."""
    import ot

    wide = cost.T.double().contiguous().numpy()
    num_columns = len(wide)
    source = torch.full((num_columns,), 1 / num_columns, dtype=torch.float64).numpy()
    histograms = distributions.double().T.contiguous().numpy()
    histograms = histograms / histograms.sum(0)
    options = {"numItermax": iterations, "stopThr": 0.0, "warn": False, "log": True}
    _, log = ot.sinkhorn(source, histograms, wide, epsilon, method="sinkhorn", **options)
    nu, mu = torch.from_numpy(log["u"]), torch.from_numpy(log["v"])  # [N, C]
    columns = torch.from_numpy(wide)
    return (nu * ((columns * torch.exp(-columns / epsilon)) @ mu)).T.float()
