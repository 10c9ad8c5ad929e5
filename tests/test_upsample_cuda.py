"""`joint_bilateral_upsample` and what only CUDA has: thread orders, streams, graphs, offsets beyond 32 bits."""

import os
import subprocess
import sys

import pytest
import torch
from upsample_inputs import SINGLE, inputs, upsampled

from ovs_kernels import _native, joint_bilateral_upsample
from ovs_kernels.testing import assert_close_rel


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    maps, guide = inputs(19, (5, 6), (21, 31))
    v_up = torch.randn(19, 21, 31)
    torch.save((maps, guide, v_up), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, joint_bilateral_upsample
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
maps, guide, v_up = torch.load(folder + "/inputs.pt")
leaf = maps.requires_grad_()
with _native.use_emulator(module):
    up = joint_bilateral_upsample(leaf, guide)
    up.backward(v_up)
    labels = joint_bilateral_upsample(maps.detach(), guide, labels=True)
torch.save([up.detach(), leaf.grad, labels], folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    leaf = maps.clone().requires_grad_()
    with _native.use_emulator(emulated_module):
        up = joint_bilateral_upsample(leaf, guide)
        up.backward(v_up)
        labels = joint_bilateral_upsample(maps, guide, labels=True)
    for one, two in zip(results, [up.detach(), leaf.grad, labels], strict=True):
        assert torch.equal(one, two)
    assert_close_rel(results[0], upsampled(maps, guide.numpy()), SINGLE)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    maps, guide = (part.cuda() for part in inputs(21, (16, 16), (128, 128)))
    expected = joint_bilateral_upsample(maps, guide)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = maps * 1.0
            result = joint_bilateral_upsample(late, guide)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("options", [{}, {"labels": True}, {"nan_policy": "omit"}])
def test_graph_capture(options):
    maps, guide = (part.cuda() for part in inputs(21, (16, 16), (128, 128)))
    joint_bilateral_upsample(maps, guide, **options)  # first call outside: modules are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = joint_bilateral_upsample(maps, guide, **options)
    for seed in (2, 3):
        other_maps, other_guide = (part.cuda() for part in inputs(21, (16, 16), (128, 128), seed))
        expected = joint_bilateral_upsample(other_maps, other_guide, **options)
        maps.copy_(other_maps)
        guide.copy_(other_guide)
        graph.replay()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@pytest.mark.slow
@needs_cuda
def test_offsets_beyond_32_bits():
    # 2,110 classes x 1024 x 1024 = 2.2e9 elements, 8.8 GB: the last classes repeat the first ones.
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GB of GPU memory")
    maps, guide = (part.cuda() for part in inputs(5, (32, 32), (1024, 1024)))
    expected = joint_bilateral_upsample(maps, guide)
    result = joint_bilateral_upsample(maps.repeat(422, 1, 1), guide)
    assert result.numel() > 2**31
    assert torch.equal(result[:5], expected)
    assert torch.equal(result[-5:], expected)
