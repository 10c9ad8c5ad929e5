"""`dense_crf`, `permutohedral_filter` and what only CUDA has: thread orders, streams, graphs; limits of memory."""

import os
import re
import subprocess
import sys

import pytest
import torch
from crf_inputs import DOUBLE, SINGLE, Lattice, normalized, scene

from ovs_kernels import _native, dense_crf, permutohedral_filter
from ovs_kernels.testing import assert_close_rel


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once. The order decides which slot of the
    # hash table a vertex gets.
    image, probabilities = scene(17, 23, 6, 1)
    torch.save((image, probabilities), tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, dense_crf
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
image, probabilities = torch.load(folder + "/inputs.pt")
with _native.use_emulator(module):
    results = [dense_crf(image, probabilities, iterations=3, gaussian_filter=kind) for kind in ("lattice", "exact")]
torch.save(results, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    for one, kind in zip(results, ("lattice", "exact"), strict=True):
        with _native.use_emulator(emulated_module):
            two = dense_crf(image, probabilities, iterations=3, gaussian_filter=kind)
        assert torch.equal(one, two)
        assert_close_rel(one, dense_crf(image, probabilities.double(), iterations=3, gaussian_filter=kind), SINGLE)


@pytest.mark.parametrize("num_classes", [21, 171])
def test_larger_image_matches_the_cpu(emulated_module, num_classes):
    image, probabilities = scene(60, 81, num_classes, 2)
    for options in ({}, {"gaussian_filter": "exact", "bilateral_compat": None}):
        expected = dense_crf(image, probabilities.double(), iterations=2, **options)
        with _native.use_emulator(emulated_module):
            assert_close_rel(dense_crf(image, probabilities, iterations=2, **options), expected, SINGLE)
            double = dense_crf(image, probabilities.double(), iterations=2, **options)
        assert_close_rel(double, expected, DOUBLE)


def test_plain_image_has_vertices_of_many_points(emulated_module):
    # Nearly every pixel is an entry of the same few vertices, which are summed in segments.
    image, probabilities = torch.full((3, 50, 60), 0.5), scene(50, 60, 5, 3)[1]
    expected = dense_crf(image, probabilities.double(), iterations=2, gaussian_compat=None)
    with _native.use_emulator(emulated_module):
        result = dense_crf(image, probabilities, iterations=2, gaussian_compat=None)
    assert_close_rel(result, expected, SINGLE)


# Limits of memory -------------------------------------------------------------------------------------------


def needed(features, values, limit):
    """The bytes that an error asks for."""
    with pytest.raises(ValueError) as error:
        permutohedral_filter(features, values, memory_limit=limit)
    pattern = r"permutohedral_filter: memory_limit: expected at least (\d+) bytes for these features, got \d+"
    return int(re.fullmatch(pattern, str(error.value))[1])


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("transpose", [False, True])
def test_filter_in_few_columns_is_the_same(device, to_device, normalization, transpose):
    features = to_device(2 * torch.randn(31, 3))
    values = to_device(torch.randn(31, 45, dtype=torch.float64))
    options = {"normalization": normalization, "transpose": transpose}
    least = needed(features, values, 1)
    assert needed(features, values, least - 1) == least
    few = permutohedral_filter(features, values, memory_limit=least, **options)
    matrix = normalized(Lattice(features.double().cpu().tolist()).matrix(), normalization)
    expected = torch.from_numpy(matrix.T if transpose else matrix) @ values.cpu()
    assert_close_rel(few, expected, DOUBLE)
    assert_close_rel(few, permutohedral_filter(features, values, **options), 1e-13)
    assert torch.equal(
        permutohedral_filter(features, values, memory_limit=2**40, **options),
        permutohedral_filter(features, values, **options),
    )


def test_gradient_keeps_the_limit(device, to_device):
    features, values = to_device(torch.randn(9, 2)), to_device(torch.randn(9, 20, dtype=torch.float64))
    least = needed(features, values, 1)
    leaf = values.requires_grad_()
    result = permutohedral_filter(features, leaf, memory_limit=least)
    (gradient,) = torch.autograd.grad(result.sum(), leaf)
    expected = permutohedral_filter(features, torch.ones_like(result), transpose=True)
    assert_close_rel(gradient, expected, DOUBLE)


# On a GPU ---------------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_same_bits_in_every_run():
    image, probabilities = (part.cuda() for part in scene(300, 400, 21, 4))
    expected = dense_crf(image, probabilities)
    for _ in range(5):
        assert torch.equal(dense_crf(image, probabilities), expected)


@pytest.mark.cuda
@needs_cuda
def test_side_stream():
    image, probabilities = (part.cuda() for part in scene(128, 128, 21, 5))
    expected = dense_crf(image, probabilities)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = probabilities * 1.0
            result = dense_crf(image, late)
            late.zero_()
        stream.synchronize()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("kind", ["lattice", "exact"])
def test_graph_capture(kind):
    image, probabilities = (part.cuda() for part in scene(64, 80, 9, 6))
    dense_crf(image, probabilities, gaussian_filter=kind)  # first call outside: modules are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = dense_crf(image, probabilities, gaussian_filter=kind)
    for seed in (7, 8):  # other images have lattices of other sizes
        other_image, other_probabilities = (part.cuda() for part in scene(64, 80, 9, seed))
        expected = dense_crf(other_image, other_probabilities, gaussian_filter=kind)
        image.copy_(other_image)
        probabilities.copy_(other_probabilities)
        graph.replay()
        assert torch.equal(result, expected)


@pytest.mark.cuda
@needs_cuda
def test_real_size_matches_the_cpu():
    image, probabilities = scene(448, 597, 21, 9)
    result = dense_crf(image.cuda(), probabilities.cuda())
    assert_close_rel(result, dense_crf(image, probabilities), 1e-3)
