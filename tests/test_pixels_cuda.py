"""`lp_pixels` and what only CUDA has: thread orders, streams, graphs, offsets beyond 32 bits."""

import os
import subprocess
import sys

import pytest
import torch
from pixels_inputs import SINGLE, case, definition

from ovs_kernels import _native, lp_pixels
from ovs_kernels.testing import assert_close_rel, synthetic_scene


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    scores, image = case(19, 21, 9)
    torch.save((scores, image), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, lp_pixels
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
scores, image = torch.load(folder + "/inputs.pt")
with _native.use_emulator(module):
    results = [lp_pixels(scores, image, mode=mode) for mode in ("official", "exact")]
    results.append(lp_pixels(scores, image, labels=True, groups=[0, 1, 2] * 3))
torch.save(results, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    with _native.use_emulator(emulated_module):
        here = [lp_pixels(scores, image, mode=mode) for mode in ("official", "exact")]
        here.append(lp_pixels(scores, image, labels=True, groups=[0, 1, 2] * 3))
    for one, two in zip(results, here, strict=True):
        assert torch.equal(one, two)
    assert_close_rel(results[0], definition(scores, image)[0], SINGLE)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    scores, image = (part.cuda() for part in case(37, 150, 5))
    expected = lp_pixels(scores, image)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = scores * 1.0
            result = lp_pixels(late, image)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("options", [{}, {"mode": "exact"}, {"labels": True, "groups": [0, 1, 1, 2, 0]}])
def test_graph_capture(options):
    scores, image = (part.cuda() for part in case(37, 150, 5))
    others = [tuple(part.cuda() for part in case(37, 150, 5, seed)) for seed in (2, 3)]
    lp_pixels(scores, image, **options)  # first call outside: modules are loaded, groups copied
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = lp_pixels(scores, image, **options)
    for other_scores, other_image in others:
        expected = lp_pixels(other_scores, other_image, **options)
        scores.copy_(other_scores)
        image.copy_(other_image)
        graph.replay()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@pytest.mark.slow
@needs_cuda
def test_offsets_beyond_32_bits():
    # 2,110 classes x 1024 x 1024 = 2.2e9 elements, 8.8 GB: the last classes repeat the first ones.
    if torch.cuda.get_device_properties(0).total_memory < 48 * 2**30:
        pytest.skip("needs 48 GB of GPU memory")
    image, scores, _ = synthetic_scene(1024, 1024, 5, 2)
    scores, image = scores.cuda(), image.cuda()
    expected = lp_pixels(scores, image, window=3, max_iter=2)
    many = scores.repeat(422, 1, 1)
    assert many.numel() > 2**31
    result = lp_pixels(many, image, window=3, max_iter=2)
    assert torch.equal(result[:5], expected)
    assert torch.equal(result[-5:], expected)
    assert torch.equal(lp_pixels(many, image, window=3, max_iter=2, labels=True).long(), expected.argmax(0))
