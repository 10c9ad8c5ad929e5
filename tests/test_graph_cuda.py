"""`knn_graph` and what only CUDA has: thread orders, streams, fresh memory."""

import os
import subprocess
import sys

import pytest
import torch
from graph_inputs import assert_is_graph_of, clustered, lattice, places

from ovs_kernels import _native, knn_graph


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    cases = [
        (clustered(150, 9), 20, 3.0),
        (lattice(150), 20, 3.0),
        (lattice(300), 90, 2.5),
        (torch.ones(40, 3), 7, 1.0),
    ]
    torch.save((cases, places(300)), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, knn_graph
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cases, places = torch.load(folder + "/inputs.pt")
with _native.use_emulator(module):
    graphs = [knn_graph(x, k, positions=places[: len(x)], gamma=gamma).tensors() for x, k, gamma in cases]
torch.save(graphs, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    with _native.use_emulator(emulated_module):
        for result, (features, k, gamma) in zip(results, cases, strict=True):
            here = knn_graph(features, k, positions=places(300)[: len(features)], gamma=gamma)
            for one, two in zip(result, here.tensors(), strict=True):
                assert torch.equal(one, two)


def test_emulated_and_cpu_choose_alike(emulated_module):
    for features in (clustered(200, 9), lattice(200)):
        expected = knn_graph(features, 30, positions=places(200))
        with _native.use_emulator(emulated_module):
            graph = knn_graph(features, 30, positions=places(200))
        assert torch.equal(graph.indptr, expected.indptr)
        assert torch.equal(graph.indices, expected.indices)
        torch.testing.assert_close(graph.weights, expected.weights, rtol=3e-6, atol=0)
        torch.testing.assert_close(graph.degrees, expected.degrees, rtol=3e-6, atol=0)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    features, positions = clustered(2000, 64).cuda(), places(2000).cuda()
    expected = knn_graph(features, 150, positions=positions)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = features * 1.0
            graph = knn_graph(late, 150, positions=positions)
            late.zero_()
        stream.synchronize()
        for one, two in zip(graph.tensors(), expected.tensors(), strict=True):
            assert torch.equal(one, two)


@pytest.mark.cuda
@needs_cuda
def test_sizes_of_a_real_image():
    features, positions = clustered(2940, 768), places(2940)
    graph = knn_graph(features.cuda(), 400, positions=positions.cuda())
    assert_is_graph_of(graph, features, 400, positions)
    piecewise = knn_graph(features.cuda(), 400, positions=positions.cuda(), memory_limit=40_000_000)
    for one, two in zip(graph.tensors(), piecewise.tensors(), strict=True):
        assert torch.equal(one, two)
