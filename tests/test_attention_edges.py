"""`attention_mean`: large logits, NaN, layouts, dtypes, kinds of arrays, empty arrays; and where no bit may change."""

import math

import numpy as np
import pytest
import torch
from attention_inputs import SINGLE, by_hand, pair

from ovs_kernels import attention_mean
from ovs_kernels.testing import assert_close_rel

INF = math.inf

# Large logits -------------------------------------------------------------------------------------------------------

# Rounding of the logits in float32 is 2^-24 of their size, and shows in the entries as a share: a size of 2,000 costs
# 1e-4 and some. Numbers of the inputs are multiples of 1/8, so that their products are exact and only the factor
# log2(e) is not.
LARGE = 1e-3


def on_a_grid(tensor):
    return (8 * tensor).round() / 8


@pytest.mark.parametrize("spread", [3.0, 8.0, 20.0, 50.0])
def test_large_logits(device, to_device, spread):
    queries, keys = (on_a_grid(tensor) for tensor in pair(2, 40, 37, 16, spread=spread))
    mean, info = attention_mean(to_device(queries), to_device(keys), scale=0.25, return_info=True)
    expected = by_hand([queries], [keys], scale=0.25)
    assert_close_rel(mean, expected, LARGE)
    assert_close_rel(info.column_sums, expected.sum(0), LARGE)
    assert ((mean.double().sum(1) - 1).abs() < 1e-6).all()


def test_large_logits_on_every_instruction_set(isa):
    for spread in (3.0, 8.0, 20.0, 50.0):
        queries, keys = (on_a_grid(tensor) for tensor in pair(2, 40, 37, 16, spread=spread))
        mean = attention_mean(queries, keys, scale=0.25)
        assert_close_rel(mean, by_hand([queries], [keys], scale=0.25), LARGE, message=f"{isa}, {spread}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_every_size_side_by_side(device, to_device, dtype):
    # One feature: logit = query * key. Rows with logits up to 1e-3, 1, 100, 1e4 and 1e30 in one tile, of both signs.
    queries = torch.tensor([1e-3, 1.0, 100.0, 1e4, 1e30, -1e30, -1e4, -100.0, -1.0, 0.0], dtype=dtype)[None, :, None]
    keys = torch.tensor([0.5, 1.0, 0.0, -1.0, 0.25], dtype=dtype)[None, :, None]
    mean = attention_mean(to_device(queries), to_device(keys), scale=1.0)
    assert_close_rel(mean, by_hand([queries], [keys], scale=1.0), 1e-4 if dtype == torch.float32 else 1e-10)


def test_a_head_of_large_logits_beside_one_of_small(device, to_device):
    (q0, k0), (q1, k1) = pair(1, 40, 40, 4), pair(1, 40, 40, 4, seed=2)
    queries, keys = torch.cat((q0, on_a_grid(100 * q1), q0)), torch.cat((k0, on_a_grid(k1), k0))
    mean = attention_mean(to_device(queries), to_device(keys), scale=0.5)
    assert_close_rel(mean, by_hand([queries], [keys], scale=0.5), LARGE)


@pytest.mark.parametrize("largest", [69.0, 69.3, 69.4, 88.0])
def test_border_of_the_exponentials_without_a_shift(device, to_device, largest):
    # To base 2 the logits are +-99.5, +-99.98, +-100.1 and +-127: on both sides of 100, up to which no row is shifted.
    queries = torch.tensor([1.0, -1.0, 0.5, 1e-3])[None, :, None]
    keys = torch.tensor([largest, -largest, largest - 1, 0.0])[None, :, None]
    mean = attention_mean(to_device(queries), to_device(keys), scale=1.0)
    assert_close_rel(mean, by_hand([queries], [keys], scale=1.0), LARGE)
    low = attention_mean(to_device(queries[:, :1]), to_device(torch.full((1, 50, 1), -largest)), scale=1.0)
    assert_close_rel(low, torch.full((1, 50), 0.02), SINGLE)


def test_far_below_the_largest(device, to_device):
    # Logits 0, -20, -40, -60: entries as small as 1e-26 keep their digits.
    queries, keys = torch.ones(1, 3, 1), torch.tensor([0.0, -20.0, -40.0, -60.0])[None, :, None]
    mean = attention_mean(to_device(queries), to_device(keys), scale=1.0).cpu().double()
    np.testing.assert_allclose(mean, by_hand([queries], [keys], scale=1.0), rtol=1e-5)


def test_below_the_smallest_number_is_zero(device, to_device):
    queries, keys = torch.ones(1, 3, 1), torch.tensor([0.0, -500.0, -1e5])[None, :, None]
    mean = attention_mean(to_device(queries), to_device(keys), scale=1.0)
    assert mean.tolist() == [[1.0, 0.0, 0.0]] * 3


# Numbers that are not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, INF, -INF])
def test_query_that_is_not_finite_poisons_its_row(device, to_device, poison):
    queries, keys = pair(3, 37, 29, 5)
    expected = attention_mean(to_device(queries), to_device(keys)).cpu()
    queries[1, 18, 2] = poison
    mean, info = attention_mean(to_device(queries), to_device(keys), return_info=True)
    assert mean[18].isnan().all()
    mean, expected = mean.cpu(), expected.clone()
    expected[18] = math.nan
    assert_close_rel(mean, expected, SINGLE)
    assert info.column_sums.isnan().all()
    assert info.maximum.isnan()


def test_key_that_is_nan_poisons_everything(device, to_device):
    queries, keys = pair(3, 37, 29, 5)
    keys[2, 28, 0] = math.nan
    mean, info = attention_mean(to_device(queries), to_device(keys), return_info=True)
    assert mean.isnan().all()
    assert info.column_sums.isnan().all()
    assert info.maximum.isnan()


def test_infinite_key_as_softmax_has_it(device, to_device):
    # Queries > 0 have the logit +Inf there, and NaN rows; queries < 0 have -Inf, and give nothing.
    queries, keys = torch.tensor([1.0, -1.0])[None, :, None], torch.tensor([0.0, INF, 0.0])[None, :, None]
    mean = attention_mean(to_device(queries), to_device(keys), scale=1.0).cpu()
    assert mean[0].isnan().all()
    assert_close_rel(mean[1], torch.tensor([0.5, 0.0, 0.5]), SINGLE)


def test_block_of_weight_zero_is_not_read(device, to_device):
    queries, keys = pair(3, 37, 29, 5)
    expected = attention_mean(to_device(queries), to_device(keys))
    nothing = to_device(torch.full((1, 37, 2), math.nan)), to_device(torch.full((1, 29, 2), math.nan))
    mean = attention_mean([to_device(queries), nothing[0]], [to_device(keys), nothing[1]], weights=[1.0, 0.0])
    assert torch.equal(mean, expected)


def test_nothing_left_for_the_kept_tokens_is_nan(device, to_device):
    # The first token takes all: the others get exp(-500), zero in float32.
    queries, keys = torch.ones(1, 4, 1), torch.tensor([500.0, 0.0, 0.0, 0.0])[None, :, None]
    mean = attention_mean(to_device(queries), to_device(keys), scale=1.0, drop_first=1)
    assert mean.isnan().all()


def test_dropped_class_token_with_a_large_logit(device, to_device):
    # exp(-30) is left for the patches, in equal parts.
    queries, keys = torch.ones(1, 4, 1), torch.tensor([30.0, 0.0, 0.0, 0.0])[None, :, None]
    mean = attention_mean(to_device(queries), to_device(keys), scale=1.0, drop_first=1)
    assert_close_rel(mean, torch.full((3, 3), 1 / 3), SINGLE)


# Layouts, dtypes, kinds ---------------------------------------------------------------------------------------------


def layouts(tensor):
    """The same numbers behind other strides."""
    larger = torch.full([extent + 3 for extent in tensor.shape], math.nan)
    larger[1:-2, 2:-1, 1:-2] = tensor
    stepped = torch.full([2 * extent for extent in tensor.shape], math.nan)
    stepped[::2, 1::2, ::2] = tensor
    return {
        "heads inside, as to_q gives them": tensor.transpose(0, 1).contiguous().transpose(0, 1),
        "features first": tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "sliced": larger[1:-2, 2:-1, 1:-2],
        "stepped": stepped[::2, 1::2, ::2],
    }


def test_layouts(device, to_device):
    queries, keys = pair(3, 37, 29, 5)
    expected = attention_mean(to_device(queries), to_device(keys))
    others = layouts(keys)
    for name, view in layouts(queries).items():
        assert torch.equal(view, queries)
        mean = attention_mean(to_device(view), to_device(others[name]))
        assert torch.equal(mean, expected), name
        assert mean.is_contiguous(), name


def test_expanded(device, to_device):
    queries, keys = pair(1, 37, 29, 5)
    expected = attention_mean(to_device(queries.repeat(4, 1, 1)), to_device(keys.repeat(4, 1, 1)))
    mean = attention_mean(to_device(queries).expand(4, 37, 5), to_device(keys).expand(4, 29, 5))
    assert torch.equal(mean, expected)


def test_layouts_with_dropped_tokens(device, to_device):
    queries, keys = pair(3, 37, 37, 5)
    expected = attention_mean(to_device(queries), to_device(keys), drop_first=3)
    for name, view in layouts(queries).items():
        assert torch.equal(attention_mean(to_device(view), to_device(keys), drop_first=3), expected), name
    assert_close_rel(
        attention_mean(to_device(queries), to_device(keys), keep=list(range(3, 37))), expected.cpu(), SINGLE
    )


def test_inputs_are_not_written(device, to_device):
    blocks = [to_device(tensor) for tensor in (*pair(3, 37, 37, 5), *pair(2, 37, 37, 4))]
    copies = [tensor.clone() for tensor in blocks]
    attention_mean(blocks[::2], blocks[1::2], drop_first=2, return_info=True)
    for tensor, copy in zip(blocks, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(device, to_device, dtype):
    # Computed and returned in float32.
    queries, keys = (tensor.to(dtype) for tensor in pair(2, 37, 29, 8))
    mean = attention_mean(to_device(queries), to_device(keys))
    assert mean.dtype == torch.float32
    assert torch.equal(mean, attention_mean(to_device(queries.float()), to_device(keys.float())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(device, to_device, dtype):
    # Logits down to -30: entries in the subnormal range of float16, and below it.
    queries, keys = pair(2, 45, 70, 8, spread=3.0)
    single, info = attention_mean(to_device(queries), to_device(keys), return_info=True)
    half, half_info = attention_mean(to_device(queries), to_device(keys), dtype=dtype, return_info=True)
    assert half.dtype == dtype
    assert torch.equal(half, single.to(dtype))
    assert ((single > 0) & (single < 6e-8)).any()
    assert ((single > 6e-8) & (single < 6e-5)).any()
    assert torch.equal(half_info.column_sums, info.column_sums)
    assert torch.equal(half_info.maximum, info.maximum)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_nan(device, to_device, dtype):
    queries, keys = pair(2, 37, 29, 8)
    queries[0, 3, 0] = math.nan
    mean = attention_mean(to_device(queries), to_device(keys), dtype=dtype)
    assert mean[3].isnan().all()
    assert mean[4].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_every_instruction_set(isa, dtype):
    queries, keys = pair(2, 45, 70, 8, spread=3.0)
    queries[0, 3, 0] = math.nan
    single = attention_mean(queries, keys).to(dtype)
    half = attention_mean(queries, keys, dtype=dtype)
    torch.testing.assert_close(half, single, rtol=0, atol=0, equal_nan=True)


def test_dtypes_of_matrix_and_inputs(device, to_device):
    queries, keys = pair(2, 37, 29, 8)
    double = attention_mean(to_device(queries), to_device(keys), dtype=torch.float64, return_info=True)
    assert double[0].dtype == double[1].column_sums.dtype == double[1].maximum.dtype == torch.float64
    assert_close_rel(double[0], by_hand([queries], [keys]), 1e-13)
    single = attention_mean(to_device(queries.double()), to_device(keys.double()), dtype=torch.float32)
    assert torch.equal(single, double[0].float())


def test_numpy():
    queries, keys = pair(2, 37, 29, 8)
    expected, expected_info = attention_mean(queries, keys, return_info=True)
    mean, info = attention_mean(queries.numpy(), keys.numpy(), return_info=True)
    assert isinstance(mean, np.ndarray)
    assert isinstance(info.column_sums, np.ndarray)
    np.testing.assert_array_equal(mean, expected.numpy())
    np.testing.assert_array_equal(info.column_sums, expected_info.column_sums.numpy())
    assert info.maximum == expected_info.maximum.item()
    blocks = attention_mean([queries.numpy()], [keys.numpy()], weights=np.array([2.0]))
    np.testing.assert_array_equal(blocks, expected.numpy())
    flipped = queries.flip(1).contiguous().numpy()[:, ::-1]
    np.testing.assert_array_equal(attention_mean(flipped, keys.numpy()), expected.numpy())


def test_every_kind_of_array_gives_the_same(xp):
    to_array, to_tensor = xp
    queries, keys = pair(2, 37, 29, 8)
    mean = to_tensor(attention_mean(to_array(queries), to_array(keys)))
    assert_close_rel(mean, by_hand([queries], [keys]), SINGLE)


def test_weights_and_tokens_of_any_kind():
    queries, keys = pair(2, 20, 20, 4)
    expected = attention_mean([queries] * 2, [keys] * 2, weights=[0.25, 0.75], keep=[4, 2])
    for kind in (tuple, np.array, torch.tensor):
        mean = attention_mean([queries] * 2, [keys] * 2, weights=kind([0.25, 0.75]), keep=kind([4, 2]))
        assert torch.equal(mean, expected)


# Empty, threads -----------------------------------------------------------------------------------------------------


def test_no_query(device, to_device):
    mean, info = attention_mean(to_device(torch.zeros(2, 0, 4)), to_device(torch.ones(2, 5, 4)), return_info=True)
    assert mean.shape == (0, 5)
    assert info.column_sums.tolist() == [0.0] * 5
    assert info.maximum.item() == 0.0


def test_same_bits_for_any_number_of_threads(num_threads):
    (q0, k0), (q1, k1) = pair(3, 301, 301, 8), pair(2, 301, 301, 6, seed=2)
    num_threads(1)
    mean, info = attention_mean([q0, q1], [k0, k1], drop_first=1, return_info=True)
    for threads in (2, 3, 7):
        num_threads(threads)
        again, again_info = attention_mean([q0, q1], [k0, k1], drop_first=1, return_info=True)
        assert torch.equal(again, mean)
        assert torch.equal(again_info.column_sums, info.column_sums)
        assert torch.equal(again_info.maximum, info.maximum)


def test_large_result_is_written_to_the_last_byte(device, to_device):
    # 9 MB: beyond the size from which large pages are asked for.
    if device == "emulated":
        pytest.skip("too large for the emulator")
    queries, keys = pair(1, 1501, 1501, 3)
    mean = attention_mean(to_device(queries), to_device(keys))
    expected = torch.softmax(queries[0].double() @ keys[0].double().T / math.sqrt(3), 1)
    assert_close_rel(mean, expected, SINGLE)


@pytest.mark.slow
@pytest.mark.cuda
def test_offsets_beyond_32_bits():
    if not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs a GPU with 24 GB")
    queries, keys = (tensor.cuda() for tensor in pair(1, 46400, 46400, 2))
    mean = attention_mean(queries, keys)
    assert mean.numel() > 2**31
    for part in (slice(0, 64), slice(-64, None)):
        expected = attention_mean(queries[:, part], keys)
        assert_close_rel(mean[part], expected.cpu(), SINGLE)
