"""`attention_mean` and what only CUDA has: thread orders, streams, graphs."""

import os
import subprocess
import sys

import pytest
import torch
from attention_inputs import CASES, SINGLE, call_arguments, expected, pair

from ovs_kernels import _native, attention_mean
from ovs_kernels.testing import assert_close_rel

# Several tiles and blocks, and several tiles with dropped tokens.
NAMES = ("129 tokens", "two blocks", "five tokens dropped", "more keys than queries")


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    torch.save([call_arguments(*CASES[name]) for name in NAMES], tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, attention_mean
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
results = []
with _native.use_emulator(module):
    for queries, keys, arguments in torch.load(folder + "/inputs.pt"):
        mean, info = attention_mean(queries, keys, **arguments, return_info=True)
        results.append((mean, info.column_sums, info.maximum))
torch.save(results, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    for name, results in zip(NAMES, torch.load(tmp_path / "results.pt"), strict=True):
        queries, keys, arguments = call_arguments(*CASES[name])
        with _native.use_emulator(emulated_module):
            mean, info = attention_mean(queries, keys, **arguments, return_info=True)
        for one, two in zip(results, (mean, info.column_sums, info.maximum), strict=True):
            assert torch.equal(one, two)
        assert_close_rel(mean, expected(name), SINGLE, message=name)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_tokens_on_the_device():
    queries, keys = (tensor.cuda() for tensor in pair(2, 40, 40, 8))
    kept = attention_mean(queries, keys, keep=[3, 1, 30])
    assert torch.equal(attention_mean(queries, keys, keep=torch.tensor([3, 1, 30]).cuda()), kept)


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    queries, keys = (tensor.cuda() for tensor in pair(3, 300, 400, 8))
    wanted = attention_mean(queries, keys)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = queries * 1.0
            mean = attention_mean(late, keys)
            late.zero_()
        stream.synchronize()
        assert torch.equal(mean, wanted)


@pytest.mark.cuda
@needs_cuda
def test_graph_capture():
    originals = pair(3, 200, 200, 8)
    queries, keys = (tensor.cuda() for tensor in originals)
    attention_mean(queries, keys, drop_first=1, return_info=True)  # first call outside: modules are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mean, info = attention_mean(queries, keys, drop_first=1, return_info=True)
    for scale in (0.5, -2.0):
        queries.copy_(scale * originals[0])
        wanted, wanted_info = attention_mean(queries, keys, drop_first=1, return_info=True)
        graph.replay()
        assert torch.equal(mean, wanted)
        assert torch.equal(info.column_sums, wanted_info.column_sums)
        assert torch.equal(info.maximum, wanted_info.maximum)
