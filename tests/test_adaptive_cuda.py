"""`adaptive_conv` and what only CUDA has: thread orders, streams, graphs, sizes beyond 32 bits."""

import os
import subprocess
import sys

import pytest
import torch
from adaptive_inputs import SINGLE, expected, expected_gradients, tensors

from ovs_kernels import _native, adaptive_conv
from ovs_kernels.testing import assert_close_rel


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    name = "FeatUp, a batch"
    arguments = [tensor.float() for tensor in tensors(name)]
    torch.save(arguments, tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, adaptive_conv
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
image, filters, v_out = torch.load(folder + "/inputs.pt")
leaves = [image.requires_grad_(), filters.requires_grad_()]
with _native.use_emulator(module):
    result = adaptive_conv(*leaves)
    result.backward(v_out)
torch.save([result.detach(), *(leaf.grad for leaf in leaves)], folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    leaves = [tensor.clone().requires_grad_() for tensor in arguments[:2]]
    with _native.use_emulator(emulated_module):
        result = adaptive_conv(*leaves)
        result.backward(arguments[2])
    for one, two in zip(results, [result.detach(), *(leaf.grad for leaf in leaves)], strict=True):
        assert torch.equal(one, two)
    for one, two in zip(results, [expected(name), *expected_gradients(name)], strict=True):
        assert_close_rel(one, two, SINGLE)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    image, filters, _ = (tensor.float().cuda() for tensor in tensors("FeatUp"))
    expected = adaptive_conv(image, filters)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = filters * 1.0
            result = adaptive_conv(image, late)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
def test_graph_capture():
    image, filters, v_out = (tensor.float().cuda() for tensor in tensors("FeatUp, a batch"))
    operators = torch.ops.ovs_kernels

    def all_three():
        return (
            operators.adaptive_conv(image, filters),
            operators.adaptive_conv_input_backward(v_out, filters),
            operators.adaptive_conv_filters_backward(v_out, image),
        )

    all_three()  # first call outside: modules are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = all_three()
    for scale in (2.0, -3.0):
        for tensor in (image, filters, v_out):
            tensor.mul_(scale)
        expected = all_three()
        graph.replay()
        for one, two in zip(results, expected, strict=True):
            assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.cuda
@needs_cuda
def test_offsets_beyond_32_bits():
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs a GPU with 40 GB")
    image, filters = torch.randn(1, 3, 1026, 1026, device="cuda"), torch.randn(1, 1024, 1024, 3, 3, device="cuda")
    expected = adaptive_conv(image, filters)
    result = adaptive_conv(image.repeat(1, 700, 1, 1), filters)
    assert result.numel() > 2**31
    assert torch.equal(result[:, :3], expected)
    assert torch.equal(result[:, -3:], expected)
