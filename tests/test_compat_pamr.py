"""`ovs_kernels.compat.pamr.PAMR` against the published module's steps with full tensors, in float64."""

import pytest
import torch
from pamr_inputs import DOUBLE, gradient, inputs, published, single

from ovs_kernels.compat.pamr import PAMR
from ovs_kernels.testing import assert_close_rel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [(21, 34), (7, 9)])
@pytest.mark.parametrize(("num_iter", "dilations"), [(10, [8, 16]), (3, [1, 2, 4]), (1, (1,))])
def test_forward(dtype, low, num_iter, dilations):
    pairs = [inputs(4, 3, (21, 34), seed) for seed in (1, 2)]
    x = torch.stack([image for image, _ in pairs]).to(dtype)
    mask = torch.randn(2, 4, *low).to(dtype)
    result = PAMR(num_iter, dilations)(x, mask)
    assert result.dtype == dtype
    tolerance = single(num_iter) + 2e-5 if dtype == torch.float32 else DOUBLE
    assert_close_rel(result, published(x.double(), mask.double(), num_iter, dilations), tolerance)


def test_defaults_are_the_published_ones():
    module = PAMR()
    image, scores = inputs(3, 3, (11, 13))
    assert module.num_iter == 1
    assert_close_rel(
        module(image[None], scores[None]), published(image.double()[None], scores.double()[None], 1, [1]), single(1)
    )


def test_keywords_as_published():
    image, scores = inputs(3, 3, (11, 13))
    result = PAMR(num_iter=2, dilations=[2, 4])(x=image[None], mask=scores[None])
    assert_close_rel(result, published(image.double()[None], scores.double()[None], 2, [2, 4]), single(2))


def test_iterations_can_be_changed_afterwards():
    module = PAMR(10, [1, 2])
    module.num_iter = 2
    image, scores = inputs(3, 3, (11, 13))
    assert_close_rel(
        module(image[None], scores[None]), published(image.double()[None], scores.double()[None], 2, [1, 2]), single(2)
    )


def test_state_dict_has_the_published_names_and_kernels():
    state = PAMR(10, [8, 16]).state_dict()
    assert set(state) == {"aff_x.kernel", "aff_m.kernel", "aff_std.kernel"}
    assert [tuple(value.shape) for value in state.values()] == [(8, 1, 3, 3), (8, 1, 3, 3), (9, 1, 3, 3)]
    # What the convolutions of the published module would do with them: p - neighbour, neighbour, all nine.
    patch = torch.arange(9.0).reshape(1, 1, 3, 3)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.nn.functional.conv2d(patch, state["aff_x.kernel"]).flatten().tolist() == [4.0 - k for k in others]
    assert torch.nn.functional.conv2d(patch, state["aff_m.kernel"]).flatten().tolist() == others
    assert torch.nn.functional.conv2d(patch, state["aff_std.kernel"]).flatten().tolist() == list(range(9))
    PAMR(3, [1]).load_state_dict(state)


def test_gradient_reaches_the_mask():
    image, scores = inputs(3, 3, (11, 13))
    v_result = torch.randn(3, 11, 13)
    leaf = scores[None].clone().requires_grad_()
    PAMR(2, [1, 3])(image[None], leaf).backward(v_result[None])
    assert_close_rel(leaf.grad[0], gradient(image, v_result, 2, (1, 3)), single(2))


def test_half_precision():
    image, scores = inputs(3, 3, (11, 13))
    result = PAMR(2, [1, 3])(image[None].half(), scores[None].half())
    assert result.dtype == torch.float16
    assert_close_rel(result, published(image.half().double()[None], scores.half().double()[None], 2, [1, 3]), 1e-3)


def test_wrong_shapes_give_one_line():
    with pytest.raises(ValueError, match=r"^pamr: image: expected \[B, F, H, W\]"):
        PAMR(1, [1])(torch.rand(3, 5, 6), torch.rand(1, 2, 5, 6))
