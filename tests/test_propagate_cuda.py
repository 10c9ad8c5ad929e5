"""`lp_graph` and what only CUDA has: thread orders, streams, graphs."""

import os
import subprocess
import sys

import propagate_inputs as inputs
import pytest
import torch
from propagate_inputs import SINGLE

from ovs_kernels import _native, lp_graph
from ovs_kernels.testing import assert_close_rel

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # what torch says about its own CSR tensors


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    matrix, scores = inputs.weights(70, 9), inputs.scores(70, 41)
    torch.save((inputs.parts(matrix), scores), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
import ovs_kernels
from ovs_kernels import _native
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
arrays, scores = torch.load(folder + "/inputs.pt")
with _native.use_emulator(module):
    results = [
        torch.ops.ovs_kernels.lp_graph(*arrays, None, scores, 0.95, mode, None, 1e-6, False, True)
        for mode in ("official", "exact")
    ]
torch.save(results, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    with _native.use_emulator(emulated_module):
        for mode, there in zip(("official", "exact"), results, strict=True):
            x, info = lp_graph(inputs.to_torch(matrix), scores, mode=mode, return_info=True)
            for one, two in zip((x, info.iterations, info.residuals), there, strict=True):
                assert torch.equal(one, two)
    assert_close_rel(results[0][0], inputs.official(matrix, scores)[0], SINGLE)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    graph, scores = inputs.to_torch(inputs.weights(700, 60)).cuda(), inputs.scores(700, 40).cuda()
    expected = lp_graph(graph, scores, check=False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = scores * 1.0
            result = lp_graph(graph, late, check=False)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_graph_capture(mode):
    graph, scores = inputs.to_torch(inputs.weights(700, 60)).cuda(), inputs.scores(700, 40).cuda()
    others = [inputs.scores(700, 40, seed).cuda() for seed in (3, 4)]
    lp_graph(graph, scores, mode=mode, check=False)  # first call outside: modules are loaded
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        result = lp_graph(graph, scores, mode=mode, check=False)
    for other in others:
        expected = lp_graph(graph, other, mode=mode, check=False)
        scores.copy_(other)
        recording.replay()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
def test_large_graph_against_the_cpu():
    # More rows than blocks times warps, more classes than a wave.
    matrix, scores = inputs.weights(20_000, 30), inputs.scores(20_000, 300)
    graph = inputs.to_torch(matrix)
    for mode in ("official", "exact"):
        x = lp_graph(graph.cuda(), scores.cuda(), mode=mode)
        assert_close_rel(x, lp_graph(graph.double(), scores.double(), mode=mode, tol=1e-6), 3 * SINGLE)
