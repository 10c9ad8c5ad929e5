"""`sinkhorn` and `transport_map` and what only CUDA has: thread orders, streams, graphs, no check of the numbers."""

import math
import os
import subprocess
import sys

import pytest
import torch
import transport_inputs as inputs
from transport_inputs import POTENTIAL, SINGLE

from ovs_kernels import _native, sinkhorn, transport_map
from ovs_kernels.testing import assert_close_rel


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    cost, a = inputs.costs(67, 70), inputs.distributions(34, 67)
    torch.save((cost, a), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
import ovs_kernels
from ovs_kernels import _native
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cost, a = torch.load(folder + "/inputs.pt")
results = []
with _native.use_emulator(module):
    for domain in ("plain", "log"):
        options = {"max_iter": 2, "domain": domain}
        results += ovs_kernels.sinkhorn(cost, a, **options)
        for readout in ("receiver", "plan_cost"):
            results.append(ovs_kernels.transport_map(cost, a, readout=readout, **options))
torch.save(results, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    there = iter(torch.load(tmp_path / "results.pt"))
    expected, _ = inputs.plans(cost, a, iterations=2)
    with _native.use_emulator(emulated_module):
        for domain in ("plain", "log"):
            options = {"max_iter": 2, "domain": domain}
            f, g = sinkhorn(cost, a, **options)
            assert torch.equal(f, next(there))
            assert torch.equal(g, next(there))
            assert_close_rel(inputs.plan_of(cost, f, g), expected, POTENTIAL)
            for readout in ("receiver", "plan_cost"):
                result = transport_map(cost, a, readout=readout, **options)
                assert torch.equal(result, next(there))
                assert_close_rel(result, inputs.read(cost, expected, readout), SINGLE)


def test_without_check_nothing_is_refused(emulated_module):
    cost, a = inputs.costs(6, 5), inputs.distributions(2, 6)
    with _native.use_emulator(emulated_module):
        expected = transport_map(cost, a)
        assert torch.equal(transport_map(cost, a, check=False), expected)
        scaled = transport_map(cost, 3 * a, check=False)  # a is scaled to the mass of b
        assert_close_rel(scaled, expected, SINGLE)
        cost[2, 3] = math.nan
        assert transport_map(cost, a, check=False).shape == (2, 5)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    cost, a = inputs.attention(16).cuda(), inputs.distributions(9, 256).cuda()
    expected = transport_map(cost, a, check=False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = cost * 1.0
            result = transport_map(late, a, check=False)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("epsilon", [0.1, 1e-3])
def test_graph_capture(epsilon):
    cost, a = inputs.attention(16).cuda(), inputs.distributions(9, 256).cuda()
    others = [inputs.distributions(9, 256, seed).cuda() for seed in (3, 4)]
    options = {"epsilon": epsilon, "check": False}
    transport_map(cost, a, **options)  # first call outside: modules are loaded
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        result = transport_map(cost, a, **options)
    for other in others:
        expected = transport_map(cost, other, **options)
        a.copy_(other)
        recording.replay()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("domain", ["plain", "log"])
def test_large_problem_against_the_cpu(domain):
    # Several tiles, splits and slices of classes.
    cost, a = inputs.attention(32), inputs.distributions(40, 1024)
    for readout in ("receiver", "source", "plan_cost"):
        options = {"readout": readout, "domain": domain, "exact_iters": True, "max_iter": 6}
        result = transport_map(cost.cuda(), a.cuda(), **options)
        assert_close_rel(result, transport_map(cost.double(), a.double(), **options), SINGLE)
