"""`template_entropy` and `fuse_experts` and what only CUDA has: thread orders, streams, graphs."""

import os
import subprocess
import sys

import pytest
import torch
from templates_inputs import features_for, texts_for

from ovs_kernels import _native, fuse_experts, template_entropy, window_boxes

SIZE = (21, 37)
BOXES = window_boxes(SIZE, (12, 16), (6, 8))


def inputs():
    return features_for((len(BOXES), 3, 4)), texts_for(8, 7)


def run_all(features, texts):
    """Every kernel once."""
    found = []
    for arguments in (
        {"features": features.flatten(0, 2), "mano": True},
        {"features": features, "mode": "pixel_exact", "boxes": BOXES, "size": SIZE, "out_size": (30, 19)},
    ):
        scores = template_entropy(text_embeddings=texts, temperature=0.1, **arguments)
        found += [scores.counts, scores.whole, scores.fraction]
    for strategy in ("highest", "default_on_conflict", "average_conflicting", "average"):
        found.append(fuse_experts(features, texts, SIZE, boxes=BOXES, strategy=strategy, temperature=0.1))
    return [*found, *fuse_experts(features, texts, (13, 18), labels=True, return_winners=True, temperature=0.1)]


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    script = """
import importlib.util, sys, torch
path, folder, tests = sys.argv[1:]
sys.path.insert(0, tests)
from ovs_kernels import _native
from test_templates_cuda import inputs, run_all
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with _native.use_emulator(module):
    torch.save(run_all(*inputs()), folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    tests = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path), tests]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    with _native.use_emulator(emulated_module):
        expected = run_all(*inputs())
    assert len(results) == len(expected)
    for one, two in zip(results, expected, strict=True):
        assert torch.equal(one, two)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    features, texts = (one.cuda() for one in inputs())
    expected = run_all(features, texts)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(3):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = features * 1.0
            results = run_all(late, texts)
            late.zero_()
        stream.synchronize()
        for one, two in zip(results, expected, strict=True):
            assert torch.equal(one, two)


@pytest.mark.cuda
@needs_cuda
def test_graph_capture():
    features, texts = (one.cuda() for one in inputs())
    run_all(features, texts)  # first call outside: modules are loaded, the tables are copied
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run_all(features, texts)
    features.copy_(features.flip(0))
    expected = run_all(features, texts)
    graph.replay()
    for one, two in zip(results, expected, strict=True):
        assert torch.equal(one, two)
