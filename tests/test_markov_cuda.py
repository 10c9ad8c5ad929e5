"""`doubly_stochastic` and `markov_velocity` and what only CUDA has: orders, streams, graphs, batches of steps."""

import os
import subprocess
import sys

import markov_inputs as inputs
import numpy as np
import pytest
import torch

from ovs_kernels import _native, doubly_stochastic, markov_velocity

SINGLE_TIME = 5e-3  # as in test_markov.py


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once.
    matrix, starts = inputs.attention(70, sharpness=20.0), inputs.distributions(11, 70)
    torch.save((matrix, starts), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
import ovs_kernels
from ovs_kernels import _native
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
matrix, starts = torch.load(folder + "/inputs.pt")
with _native.use_emulator(module):
    results = []
    for rule in ("first_passage", "delta_literal", "settling"):
        velocity, info = ovs_kernels.markov_velocity(matrix, starts, rule=rule, max_steps=20, return_info=True)
        results.append([velocity, info.times, info.steps, info.unreached, info.row_scale, info.column_error])
torch.save(results, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    with _native.use_emulator(emulated_module):
        for rule, there in zip(("first_passage", "delta_literal", "settling"), results, strict=True):
            velocity, info = markov_velocity(matrix, starts, rule=rule, max_steps=20, return_info=True)
            here = [velocity, info.times, info.steps, info.unreached, info.row_scale, info.column_error]
            for one, two in zip(here, there, strict=True):
                assert torch.equal(one, two)
            expected, _ = inputs.times_of(matrix, starts, rule=rule, max_steps=20)
            np.testing.assert_allclose(there[1], expected, atol=SINGLE_TIME)


@pytest.mark.parametrize("batch", [1, 5, 1000])
def test_size_of_the_batches_does_not_matter(emulated_module, monkeypatch, batch):
    from ovs_kernels._ops import markov

    matrix, starts = inputs.attention(40, sharpness=20.0), inputs.distributions(5, 40)
    with _native.use_emulator(emulated_module):
        velocity, info = markov_velocity(matrix, starts, max_steps=40, return_info=True)
        monkeypatch.setattr(markov, "STEPS_PER_BATCH", batch)
        other, other_info = markov_velocity(matrix, starts, max_steps=40, return_info=True)
    assert torch.equal(velocity, other)
    assert torch.equal(info.steps, other_info.steps)


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    matrix, starts = inputs.attention(700, sharpness=20.0).cuda(), inputs.distributions(21, 700).cuda()
    expected = markov_velocity(matrix, starts)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = matrix * 1.0
            result = markov_velocity(late, starts, check=False)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
def test_graph_capture():
    matrix, starts = inputs.attention(300, sharpness=20.0).cuda(), inputs.distributions(21, 300).cuda()
    others = [inputs.distributions(21, 300, seed).cuda() for seed in (3, 4)]
    options = {"max_steps": 60, "check": False}
    markov_velocity(matrix, starts, **options)  # first call outside: modules are loaded
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        r, c = doubly_stochastic(matrix, check=False)
        result = markov_velocity(matrix, starts, **options)
    for other in others:
        expected = markov_velocity(matrix, other, **options)
        starts.copy_(other)
        recording.replay()
        assert torch.equal(result, expected)
        assert torch.equal(r, doubly_stochastic(matrix)[0])
        assert torch.equal(c, doubly_stochastic(matrix)[1])


@pytest.mark.cuda
@needs_cuda
def test_large_matrix_against_the_cpu():
    matrix, starts = inputs.attention(4100, sharpness=20.0), inputs.distributions(171, 4100, share=0.01)
    for dtype in (torch.float32, torch.float16):
        _, info = markov_velocity(matrix.to(dtype).cuda(), starts.cuda(), return_info=True)
        _, expected = markov_velocity(matrix.to(dtype).double(), starts, return_info=True)
        torch.testing.assert_close(info.times.cpu().double(), expected.times, atol=1e-2, rtol=0)
