"""`pamr` and what only CUDA has: thread orders, streams, graphs, offsets beyond 32 bits."""

import os
import subprocess
import sys

import pytest
import torch
from pamr_inputs import inputs, refined, single

from ovs_kernels import _native, pamr
from ovs_kernels.testing import assert_close_rel


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    image, scores = inputs(11, 3, (15, 19))
    v_result = torch.randn(11, 15, 19)
    torch.save((image, scores, v_result), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, pamr
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
image, scores, v_result = torch.load(folder + "/inputs.pt")
leaf = scores.requires_grad_()
with _native.use_emulator(module):
    result = pamr(image, leaf, num_iter=3)
    result.backward(v_result)
torch.save([result.detach(), leaf.grad], folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    leaf = scores.clone().requires_grad_()
    with _native.use_emulator(emulated_module):
        result = pamr(image, leaf, num_iter=3)
        result.backward(v_result)
    for one, two in zip(results, [result.detach(), leaf.grad], strict=True):
        assert torch.equal(one, two)
    assert_close_rel(results[0], refined(image, scores, 3), single(3))


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    image, scores = (part.cuda() for part in inputs(21, 3, (128, 128)))
    expected = pamr(image, scores)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = scores * 1.0
            result = pamr(image, late)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("num_iter", [1, 10])
def test_graph_capture(num_iter):
    image, scores = (part.cuda() for part in inputs(21, 3, (128, 128)))
    pamr(image, scores, num_iter=num_iter)  # first call outside: modules are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = pamr(image, scores, num_iter=num_iter)
    for seed in (2, 3):
        other_image, other_scores = (part.cuda() for part in inputs(21, 3, (128, 128), seed))
        expected = pamr(other_image, other_scores, num_iter=num_iter)
        image.copy_(other_image)
        scores.copy_(other_scores)
        graph.replay()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@pytest.mark.slow
@needs_cuda
def test_offsets_beyond_32_bits():
    # 2,110 classes x 1024 x 1024 = 2.2e9 elements, 8.8 GB: the last classes repeat the first ones.
    if torch.cuda.get_device_properties(0).total_memory < 48 * 2**30:
        pytest.skip("needs 48 GB of GPU memory")
    image, scores = (part.cuda() for part in inputs(5, 3, (1024, 1024)))
    expected = pamr(image, scores, num_iter=2)
    result = pamr(image, scores.repeat(422, 1, 1), num_iter=2)
    assert result.numel() > 2**31
    assert torch.equal(result[:5], expected)
    assert torch.equal(result[-5:], expected)
