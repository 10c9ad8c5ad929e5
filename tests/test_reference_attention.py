"""`ovs_kernels.reference.attention`, the definition: against numbers worked out by hand and a NumPy oracle."""

import math

import numpy as np
import pytest
import torch
from attention_inputs import CASES, DOUBLE, by_hand

from ovs_kernels.reference import attention as reference
from ovs_kernels.testing import assert_close_rel


def test_one_head_by_hand():
    # Logits (ln 3, 0) and (0, ln 3): weights 3 : 1 and 1 : 3.
    tokens = torch.eye(2, dtype=torch.float64)[None]
    mean = reference.attention_mean([math.log(3.0) * tokens], [tokens], scale=1.0)
    np.testing.assert_allclose(mean, [[0.75, 0.25], [0.25, 0.75]], rtol=1e-15)


def test_heads_and_blocks_by_hand():
    # Block 0: heads with rows (3/4, 1/4) and (1/2, 1/2), mean (5/8, 3/8). Block 1: (1/4, 3/4). With weights 2/3 and 1/3
    # (5/12 + 1/12, 3/12 + 3/12) = (1/2, 1/2).
    log3 = math.log(3.0)
    queries = [torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([[[1.0]]])]
    keys = [torch.tensor([[[log3], [0.0]], [[5.0], [7.0]]]), torch.tensor([[[0.0], [log3]]])]
    queries, keys = ([tensor.double() for tensor in blocks] for blocks in (queries, keys))
    mean = reference.attention_mean(queries, keys, weights=[2.0, 1.0], scale=1.0)
    np.testing.assert_allclose(mean, [[0.5, 0.5]], rtol=1e-14)


def test_dropped_tokens_by_hand():
    # Rows over tokens (class, patch, patch): head 0 gives 8 : 1 : 1, head 1 gives 0.2 : 0.6 : 0.2 of 1. Their mean is
    # (0.5, 0.35, 0.15), the patches' share of it (0.7, 0.3). Each head over its own patches first would give
    # ((0.5 + 0.75) / 2, ...) = (0.625, 0.375).
    logits = torch.tensor([[8.0, 1.0, 1.0], [1.0, 3.0, 1.0]], dtype=torch.float64).log()
    queries = torch.ones(2, 3, 1, dtype=torch.float64)
    mean = reference.attention_mean([queries], [logits[:, :, None]], scale=1.0, keep=[1, 2])
    np.testing.assert_allclose(mean, [[0.7, 0.3]] * 2, rtol=1e-14)
    patches_alone = reference.attention_mean([queries[:, 1:]], [logits[:, 1:, None]], scale=1.0)
    np.testing.assert_allclose(patches_alone, [[0.625, 0.375]] * 2, rtol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_matches_the_oracle(name):
    queries, keys, arguments = CASES[name]
    queries, keys = ([tensor.double() for tensor in blocks] for blocks in (queries, keys))
    mean = reference.attention_mean(queries, keys, **arguments)
    assert mean.dtype == torch.float64
    assert_close_rel(mean, by_hand(queries, keys, **arguments), DOUBLE)
