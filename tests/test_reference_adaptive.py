"""`ovs_kernels.reference.adaptive`, the definition: against numbers worked out by hand and a NumPy oracle."""

import pytest
import torch
from adaptive_inputs import CASES, DOUBLE, expected, expected_gradients, tensors

from ovs_kernels.reference import adaptive as reference
from ovs_kernels.testing import assert_close_rel


def test_two_pixels_by_hand():
    # Pixel 0 sees 1 2 / 4 5 and takes its corners; pixel 1 sees 2 3 / 5 6 and takes 10 times the last.
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64).reshape(1, 1, 2, 3)
    filters = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 10.0]]], dtype=torch.float64)
    filters = filters.reshape(1, 1, 2, 2, 2)
    assert reference.adaptive_conv(image, filters).tolist() == [[[[1.0 + 5.0, 60.0]]]]
    v_out = torch.tensor([1.0, 2.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    v_input = reference.adaptive_conv_input_backward(v_out, filters)
    assert v_input.tolist() == [[[[1.0, 0.0, 0.0], [0.0, 1.0, 20.0]]]]
    v_filters = reference.adaptive_conv_filters_backward(v_out, image)
    assert v_filters[0, 0].tolist() == [[[1.0, 2.0], [4.0, 5.0]], [[4.0, 6.0], [10.0, 12.0]]]


@pytest.mark.parametrize("name", CASES)
def test_matches_numpy(name):
    image, filters, v_out = tensors(name)
    result = reference.adaptive_conv(image, filters)
    assert result.dtype == torch.float64
    assert_close_rel(result, expected(name), DOUBLE)
    v_input, v_filters = expected_gradients(name)
    assert_close_rel(reference.adaptive_conv_input_backward(v_out, filters), v_input, DOUBLE)
    assert_close_rel(reference.adaptive_conv_filters_backward(v_out, image), v_filters, DOUBLE)


def test_equal_filters_are_a_plain_convolution():
    image = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    taps = torch.randn(4, 3, dtype=torch.float64)
    filters = taps.expand(2, 6, 9, 4, 3)
    plain = torch.nn.functional.conv2d(image.flatten(0, 1)[:, None], taps[None, None])
    assert_close_rel(reference.adaptive_conv(image, filters), plain.reshape(2, 3, 6, 9), DOUBLE)


def test_matches_the_unfold_formulation():
    # What FeatUp's users without its extension write: neighbourhoods written out, then one contraction.
    image, filters, _ = tensors("FeatUp, a batch")
    batch, height, width, rows, columns = filters.shape
    patches = torch.nn.functional.unfold(image, (rows, columns))
    patches = patches.reshape(batch, image.shape[1], rows, columns, height, width)
    assert_close_rel(
        reference.adaptive_conv(image, filters), torch.einsum("byxij,bcijyx->bcyx", filters, patches), DOUBLE
    )
