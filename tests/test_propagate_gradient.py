"""Gradients of `lp_graph` in exact mode."""

import propagate_inputs as inputs
import pytest
import torch

from ovs_kernels import lp_graph
from ovs_kernels.testing import assert_close_rel

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # what torch says about its own CSR tensors


def test_gradient_is_the_transposed_solve(device, to_device):
    matrix, cotangent = inputs.weights(50, 6), torch.randn(50, 3)
    expected = inputs.exact(matrix, cotangent)  # L is symmetric
    leaf = to_device(inputs.scores(50, 3)).requires_grad_()
    lp_graph(to_device(inputs.to_torch(matrix)), leaf, mode="exact").backward(to_device(cotangent))
    assert_close_rel(leaf.grad, expected, 1e-5)


def test_gradient_in_double_precision():
    matrix, scores = inputs.weights(12, 4), inputs.scores(12, 2).double().requires_grad_()

    def solve(y):
        return lp_graph(matrix, y, mode="exact", tol=1e-15)  # finite differences magnify what is left

    # A linear function: a large step loses nothing and drowns no digits.
    assert torch.autograd.gradcheck(solve, (scores,), eps=1e-2)
    assert torch.autograd.gradgradcheck(solve, (scores,), eps=1e-2)


def test_solution_operator_is_self_adjoint(device, to_device):
    scores = inputs.scores(60, 2)
    x = lp_graph(inputs.weights(60, 8), to_device(scores), mode="exact").cpu().double()
    u, v = scores.double().T
    left, right = (x[:, 0] * v).sum().item(), (u * x[:, 1]).sum().item()
    assert left == pytest.approx(right, abs=1e-5 * x[:, 0].norm().item() * v.norm().item())


def test_official_mode_refuses_in_backward():
    leaf = inputs.scores(20, 2).requires_grad_()
    x = lp_graph(inputs.weights(20, 4), leaf)
    with pytest.raises(NotImplementedError) as caught:
        x.sum().backward()
    assert str(caught.value) == (
        "lp_graph: mode: the gradient of 'official', whose result is not linear in the scores, is not implemented; "
        'use mode="exact" for training'
    )


def test_weights_get_no_gradient():
    graph = inputs.to_torch(inputs.weights(20, 4)).requires_grad_()
    leaf = inputs.scores(20, 2).requires_grad_()
    lp_graph(graph, leaf, mode="exact").sum().backward()
    assert leaf.grad is not None
    assert graph.grad is None


def test_info_has_no_gradient():
    leaf = inputs.scores(20, 2).requires_grad_()
    _, info = lp_graph(inputs.weights(20, 4), leaf, mode="exact", return_info=True)
    assert not info.residuals.requires_grad
