"""`merge_windows` and what only CUDA has: thread orders, streams, graphs, chunks of classes, boxes on the device."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from windows_inputs import CASES, SINGLE, SINGLE_GRADIENT, interpolation_matrix, padded_adds

from ovs_kernels import _native, merge_windows
from ovs_kernels.testing import assert_close_rel


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    setups, boxes, size = CASES["three set-ups"]
    v_merged = torch.randn(4, *size)
    torch.save((setups, boxes, v_merged), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, merge_windows
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
setups, boxes, v_merged = torch.load(folder + "/inputs.pt")
leaves = [scores.requires_grad_() for scores in setups]
with _native.use_emulator(module):
    merged = merge_windows(leaves, boxes, v_merged.shape[1:])
    merged.backward(v_merged)
torch.save([merged.detach(), *(leaf.grad for leaf in leaves)], folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    leaves = [scores.clone().requires_grad_() for scores in setups]
    with _native.use_emulator(emulated_module):
        merged = merge_windows(leaves, boxes, size)
        merged.backward(v_merged)
    for one, two in zip(results, [merged.detach(), *(leaf.grad for leaf in leaves)], strict=True):
        assert torch.equal(one, two)
    assert_close_rel(results[0], padded_adds(setups, boxes, size), SINGLE)


def test_chunks_of_classes(device, to_device):
    # Stretched rows of 300 patch rows x 640 columns are 0.75 MB a class: 87 classes fill the 64 MiB of a chunk.
    if device == "cpu":
        pytest.skip("the CPU has no chunks")
    boxes, size = [[0, 0, 2, 640]], (2, 640)
    scores = torch.randn(1, 180, 300, 2)
    merged = merge_windows(to_device(scores), boxes, size)
    assert_close_rel(merged, padded_adds([scores], [boxes], size), SINGLE)
    leaf = to_device(scores.clone()).requires_grad_()
    v_merged = torch.randn(180, *size)
    merge_windows(leaf, boxes, size).backward(to_device(v_merged))
    rows, columns = interpolation_matrix(300, 2), interpolation_matrix(2, 640)
    expected = np.einsum("yi,cyx,xj->cij", rows, v_merged.double().numpy(), columns)
    assert_close_rel(leaf.grad[0], expected, SINGLE_GRADIENT)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_boxes_on_the_device():
    setups, boxes, size = CASES["two set-ups"]
    scores = [one.cuda() for one in setups]
    expected = merge_windows(scores, boxes, size)
    assert torch.equal(merge_windows(scores, [table.cuda() for table in boxes], size), expected)
    direct = torch.ops.ovs_kernels.merge_windows(scores, [table.cuda() for table in boxes], list(size))
    assert torch.equal(direct, expected)


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    setups, boxes, size = CASES["wide"]
    scores = setups[0].cuda()
    expected = merge_windows(scores, boxes[0], size)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = scores * 1.0
            result = merge_windows(late, boxes[0], size)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
def test_graph_capture():
    setups, boxes, size = CASES["two set-ups"]
    scores = [one.cuda() for one in setups]
    merge_windows(scores, boxes, size)  # first call outside: modules are loaded, the layout is copied
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = merge_windows(scores, boxes, size)
    for scale in (2.0, -3.0):
        for one, original in zip(scores, setups, strict=True):
            one.copy_(scale * original)
        expected = merge_windows(scores, boxes, size)
        graph.replay()
        assert torch.equal(result, expected)
