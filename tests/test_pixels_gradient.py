"""Gradients of `lp_pixels` in exact mode."""

import numpy as np
import oracles
import pytest
import torch
from pixels_inputs import case

from ovs_kernels import lp_pixels
from ovs_kernels.testing import assert_close_rel


def test_gradient_is_the_transposed_solve(device, to_device):
    scores, image = case(9, 10, 3)
    cotangent = torch.randn(3, 9, 10)
    matrix = oracles.system_matrix(oracles.dense_weights(oracles.lab_features(image), 7, 0.01), 0.95)
    expected = np.linalg.solve(matrix, cotangent.double().flatten(1).numpy().T).T.reshape(3, 9, 10)
    leaf = to_device(scores).requires_grad_()
    lp_pixels(leaf, to_device(image), window=7, mode="exact").backward(to_device(cotangent))
    assert_close_rel(leaf.grad, expected, 1e-4)


def test_gradient_in_double_precision():
    scores, image = (part.double() for part in case(4, 5, 2))
    scores.requires_grad_()

    def solve(y):
        return lp_pixels(y, image, window=5, mode="exact", tol=1e-15)  # finite differences magnify what is left

    # A linear function: a large step loses nothing and drowns no digits.
    assert torch.autograd.gradcheck(solve, (scores,), eps=1e-2)
    assert torch.autograd.gradgradcheck(solve, (scores,), eps=1e-2)


def test_solution_operator_is_self_adjoint(device, to_device):
    scores, image = case(12, 13, 2)
    x = lp_pixels(to_device(scores), to_device(image), mode="exact").cpu().double()
    u, v = scores.double()
    left, right = (x[0] * v).sum().item(), (u * x[1]).sum().item()
    assert left == pytest.approx(right, abs=1e-5 * x[0].norm().item() * v.norm().item())


def test_gradient_through_groups(device, to_device):
    scores, image = case(6, 7, 4)
    groups = [0, 1, 0, 1]
    leaf = to_device(scores).requires_grad_()
    merged = lp_pixels(leaf, to_device(image), window=5, mode="exact", groups=groups)
    assert_close_rel(
        merged, lp_pixels(to_device(scores), to_device(image), window=5, mode="exact", groups=groups), 1e-6
    )
    cotangent = torch.randn(2, 6, 7)
    merged.backward(to_device(cotangent))
    # By hand: the cotangent of a group goes to its largest class, then through the solve.
    x = lp_pixels(to_device(scores), to_device(image), window=5, mode="exact").cpu()
    routed = torch.zeros(4, 6, 7)
    for group in (0, 1):
        pair = torch.tensor([group, group + 2])
        largest = pair[x[pair].argmax(0)]
        routed.scatter_(0, largest[None], cotangent[group][None])
    expected = lp_pixels(to_device(routed), to_device(image), window=5, mode="exact")
    assert_close_rel(leaf.grad, expected, 1e-4)


def test_gradient_of_a_batch():
    pictures = [case(5, 6, 2, seed) for seed in (1, 2)]
    scores = torch.stack([scores for scores, _ in pictures]).requires_grad_()
    image = torch.stack([image for _, image in pictures])
    lp_pixels(scores, image, mode="exact").square().sum().backward()
    for index, (one_scores, one_image) in enumerate(pictures):
        leaf = one_scores.clone().requires_grad_()
        lp_pixels(leaf, one_image, mode="exact").square().sum().backward()
        assert_close_rel(scores.grad[index], leaf.grad, 1e-6)


def test_labels_and_info_have_no_gradient():
    scores, image = case(5, 6, 2)
    scores.requires_grad_()
    assert not lp_pixels(scores, image, labels=True).requires_grad
    _, info = lp_pixels(scores, image, mode="exact", return_info=True)
    assert not info.iterations.requires_grad


def test_image_gets_no_gradient():
    scores, image = case(5, 6, 2)
    scores.requires_grad_()
    image.requires_grad_()
    lp_pixels(scores, image, mode="exact").sum().backward()
    assert scores.grad is not None
    assert image.grad is None
