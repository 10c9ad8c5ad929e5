"""`ovs_kernels.attention_mean`: every backend against numbers by hand and a NumPy oracle."""

import math

import pytest
import torch
from attention_inputs import CASES, DOUBLE, SINGLE, call_arguments, expected, pair

from ovs_kernels import attention_mean
from ovs_kernels.testing import assert_close_rel

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def mean_on(to_device, name, dtype=torch.float32, **more):
    queries, keys, arguments = CASES[name]
    queries, keys = ([to_device(tensor.to(dtype)) for tensor in blocks] for blocks in (queries, keys))
    queries, keys, arguments = call_arguments(queries, keys, arguments)
    return attention_mean(queries, keys, **arguments, **more)


# Worked out by hand; test_reference_attention.py derives the numbers ------------------------------------------------


def test_one_head_by_hand(device, to_device):
    tokens = torch.eye(2)[None]
    mean = attention_mean(to_device(math.log(3.0) * tokens), to_device(tokens), scale=1.0)
    assert_close_rel(mean, torch.tensor([[0.75, 0.25], [0.25, 0.75]]), SINGLE)


def test_heads_and_blocks_by_hand(device, to_device):
    log3 = math.log(3.0)
    queries = [torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([[[1.0]]])]
    keys = [torch.tensor([[[log3], [0.0]], [[5.0], [7.0]]]), torch.tensor([[[0.0], [log3]]])]
    queries, keys = ([to_device(tensor) for tensor in blocks] for blocks in (queries, keys))
    mean = attention_mean(queries, keys, weights=[2.0, 1.0], scale=1.0)
    assert_close_rel(mean, torch.tensor([[0.5, 0.5]]), SINGLE)


@pytest.mark.parametrize("tokens", [{"keep": [1, 2]}, {"drop_first": 1}, {"keep": torch.tensor([1, 2])}])
def test_dropped_tokens_by_hand(device, to_device, tokens):
    logits = torch.tensor([[8.0, 1.0, 1.0], [1.0, 3.0, 1.0]]).log()[:, :, None]
    queries = torch.ones(2, 3, 1)
    mean = attention_mean(to_device(queries), to_device(logits), scale=1.0, **tokens)
    assert_close_rel(mean, torch.tensor([[0.7, 0.3]] * 2), SINGLE)
    alone = attention_mean(to_device(queries[:, 1:]), to_device(logits[:, 1:]), scale=1.0)
    assert_close_rel(alone, torch.tensor([[0.625, 0.375]] * 2), SINGLE)


def test_equal_logits_give_the_uniform_matrix(device, to_device):
    mean = attention_mean(to_device(torch.ones(3, 40, 4)), to_device(torch.full((3, 25, 4), 2.0)))
    assert_close_rel(mean, torch.full((40, 25), 0.04), SINGLE)


# Against the oracle -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_the_oracle(device, to_device, name, dtype):
    mean = mean_on(to_device, name, dtype)
    assert mean.dtype == dtype
    assert mean.is_contiguous()
    assert_close_rel(mean, expected(name), SINGLE if dtype == torch.float32 else DOUBLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    for name in CASES:
        mean, info = mean_on(lambda tensor: tensor, name, dtype, return_info=True)
        tolerance = SINGLE if dtype == torch.float32 else DOUBLE
        assert_close_rel(mean, expected(name), tolerance, message=f"{isa}: {name}")
        assert_close_rel(info.column_sums, expected(name).sum(0), tolerance, message=f"{isa}: {name}, column sums")
        assert float(info.maximum) == pytest.approx(expected(name).max(), rel=tolerance)


@pytest.mark.parametrize("name", ["odd everything", "three blocks", "five tokens dropped", "129 tokens", "one query"])
def test_info(device, to_device, name):
    mean, info = mean_on(to_device, name, return_info=True)
    assert info.column_sums.dtype == info.maximum.dtype == torch.float32
    assert info.maximum.shape == ()
    assert_close_rel(info.column_sums, expected(name).sum(0), SINGLE)
    assert float(info.maximum) == pytest.approx(expected(name).max(), rel=SINGLE)
    assert float(info.maximum) == float(mean.max())
    assert torch.equal(mean, mean_on(to_device, name))


def test_size_of_a_model(device, to_device):
    # The 16 x 16 level of Stable Diffusion 2: 20 heads of 64; two blocks.
    if device == "emulated":
        pytest.skip("too large for the emulator")
    (q0, k0), (q1, k1) = pair(20, 256, 256, 64), pair(20, 256, 256, 64, seed=2, spread=1.5)
    mean = attention_mean([to_device(q0), to_device(q1)], [to_device(k0), to_device(k1)])
    probabilities = [
        torch.softmax(q.double() @ k.double().transpose(1, 2) / 8, -1).mean(0) for q, k in ((q0, k0), (q1, k1))
    ]
    assert_close_rel(mean, (probabilities[0] + probabilities[1]) / 2, SINGLE)


# Invariants ---------------------------------------------------------------------------------------------------------


def test_rows_sum_to_one(device, to_device):
    for name in CASES:
        mean = mean_on(to_device, name).double()
        assert (mean.sum(1) - 1).abs().max() < 1e-6, name
        assert mean.min() >= 0


def test_shared_shift_of_the_keys_changes_nothing(device, to_device):
    # <q, k + s> moves all logits of a row by <q, s>.
    queries, keys = pair(2, 33, 45, 8)
    shifted = keys + torch.randn(2, 1, 8)
    mean = attention_mean(to_device(queries), to_device(keys))
    assert_close_rel(attention_mean(to_device(queries), to_device(shifted)), mean.cpu(), SINGLE)


def test_order_of_heads_and_blocks_does_not_matter(device, to_device):
    queries, keys, arguments = CASES["three blocks"]
    flipped = [[to_device(tensor.flip(0)) for tensor in reversed(blocks)] for blocks in (queries, keys)]
    mean = attention_mean(*flipped, weights=arguments["weights"][::-1])
    assert_close_rel(mean, mean_on(to_device, "three blocks").cpu(), SINGLE)


def test_order_of_tokens_is_kept(device, to_device):
    queries, keys = pair(2, 33, 45, 8)
    rows, columns = torch.randperm(33), torch.randperm(45)
    mean = attention_mean(to_device(queries), to_device(keys)).cpu()
    permuted = attention_mean(to_device(queries[:, rows]), to_device(keys[:, columns]))
    assert_close_rel(permuted, mean[rows][:, columns], SINGLE)


def test_all_tokens_kept_is_no_choice(device, to_device):
    queries, keys = (to_device(tensor) for tensor in pair(2, 33, 33, 8))
    mean = attention_mean(queries, keys)
    assert_close_rel(attention_mean(queries, keys, keep=list(range(33))), mean.cpu(), SINGLE)
    assert torch.equal(attention_mean(queries, keys, drop_first=0), mean)


def test_one_block_of_all_heads_is_the_mean_of_blocks_of_one_head(device, to_device):
    queries, keys = (to_device(tensor) for tensor in pair(4, 33, 40, 8))
    mean = attention_mean(queries, keys)
    apart = attention_mean([queries[h : h + 1] for h in range(4)], [keys[h : h + 1] for h in range(4)])
    assert_close_rel(apart, mean.cpu(), SINGLE)


def test_equal_queries_make_equal_rows(device, to_device):
    # Rows do not know their place: neither in a tile nor at its end.
    queries, keys = pair(2, 1, 45, 8)
    mean = attention_mean(to_device(queries.expand(2, 77, 8)), to_device(keys))
    assert torch.equal(mean, mean[:1].expand(77, 45))
