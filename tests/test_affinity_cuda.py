"""`affinity_pool` and what only CUDA has: thread orders, streams, graphs."""

import os
import subprocess
import sys

import pytest
import torch
from affinity_inputs import FORMS, SINGLE, case, window

from ovs_kernels import _native, affinity_pool
from ovs_kernels.testing import assert_close_rel

# Several tiles of rows and columns, several ranges of features.
NAMES = ("145 patches", "many features", "odd everything", "65 patches and 300 features")


def arguments_of(name, form):
    if name in NAMES[:3]:
        features, guide, arguments, _ = case(name, form)
        return features, guide, arguments
    return *window(65, 300, 9), {"form": form}


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    calls = [arguments_of(name, form) for name in NAMES for form in FORMS]
    torch.save(calls, tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, affinity_pool
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with _native.use_emulator(module):
    calls = torch.load(folder + "/inputs.pt")
    results = [affinity_pool(features, guide, **arguments) for features, guide, arguments in calls]
torch.save(results, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    for (features, guide, arguments), result in zip(calls, torch.load(tmp_path / "results.pt"), strict=True):
        with _native.use_emulator(emulated_module):
            assert torch.equal(result, affinity_pool(features, guide, **arguments))
        assert_close_rel(result, affinity_pool(features, guide, **arguments), 1e-3)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("form", FORMS)
def test_side_stream(form):
    features, guide = (tensor.cuda() for tensor in window(500, 100, 60))
    wanted = affinity_pool(features, guide, form=form)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = guide * 1.0
            pooled = affinity_pool(features, late, form=form)
            late.zero_()
        stream.synchronize()
        assert torch.equal(pooled, wanted)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("form", FORMS)
def test_graph_capture(form):
    originals = window(200, 40, 30)
    features, guide = (tensor.cuda() for tensor in originals)
    affinity_pool(features, guide, form=form)  # first call outside: modules are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pooled = affinity_pool(features, guide, form=form)
    for seed in (2, 3):
        guide.copy_(window(200, 40, 30, seed=seed)[1])
        wanted = affinity_pool(features, guide, form=form)
        graph.replay()
        assert torch.equal(pooled, wanted)


@pytest.mark.cuda
@needs_cuda
def test_cpu_and_gpu_agree():
    features, guide, arguments, expected = case("145 patches", "proxyclip")
    assert_close_rel(affinity_pool(features.cuda(), guide.cuda(), **arguments).cpu(), expected, SINGLE)
