"""`confusion_matrix` and `boundary_iou` and what only CUDA has: thread orders, streams, graphs."""

import os
import subprocess
import sys

import pytest
import torch
from metrics_inputs import as_tensors, assert_counts, counted_one_by_one, eroded_class_by_class, label_maps, strewn

from ovs_kernels import _native, boundary_iou, confusion_matrix


def maps_of(num_classes, seed=1, shape=(2, 45, 300), dtype="uint8"):
    prediction, target = label_maps(*shape, high=num_classes, cell=17, noise=0.005, seed=seed)
    return as_tensors(prediction, strewn(target, 255, 0.01), dtype=dtype)


@pytest.mark.parametrize("order", ["reverse", "random:1"])
def test_order_of_threads_does_not_matter(emulated_module, tmp_path, order):
    # In a process of its own, since the emulator may read its environment once. With 150 classes there are no counters
    # in shared memory.
    calls = [(*maps_of(num_classes, seed=num_classes), num_classes) for num_classes in (7, 150)]
    torch.save(calls, tmp_path / "inputs.pt")
    script = """
import importlib.util, sys, torch
from ovs_kernels import _native, boundary_iou, confusion_matrix
path, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("_C_emulated", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with _native.use_emulator(module):
    calls = torch.load(folder + "/inputs.pt")
    results = [(confusion_matrix(*call, others=True), boundary_iou(*call)) for call in calls]
torch.save(results, folder + "/results.pt")
"""
    environment = {**os.environ, "CUDAEMU_ORDER": order, "CUDAEMU_HOST_POINTERS": "1"}
    command = [sys.executable, "-c", script, emulated_module.__file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    results = torch.load(tmp_path / "results.pt")
    for (prediction, target, num_classes), (matrix, counts) in zip(calls, results, strict=True):
        assert_counts(matrix, counted_one_by_one(prediction, target, num_classes))
        assert_counts(counts, eroded_class_by_class(prediction, target, num_classes))


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")
both = pytest.mark.parametrize("function", [confusion_matrix, boundary_iou], ids=lambda function: function.__name__)


@pytest.mark.cuda
@needs_cuda
@both
def test_side_stream(function):
    prediction, target = (tensor.cuda() for tensor in maps_of(19, shape=(400, 500)))
    wanted = function(prediction, target, 19)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # cycles: whoever runs on another stream reads too early
            late = prediction + 0
            counts = function(late, target, 19)
            late.zero_()
        stream.synchronize()
        assert torch.equal(counts, wanted)


@pytest.mark.cuda
@needs_cuda
@both
def test_graph_capture(function):
    prediction, target = (tensor.cuda() for tensor in maps_of(19, shape=(400, 500)))
    function(prediction, target, 19)  # first call outside: modules are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counts = function(prediction, target, 19)
    for seed in (2, 3):
        prediction.copy_(maps_of(19, seed=seed, shape=(400, 500))[0])
        wanted = function(prediction, target, 19)
        graph.replay()
        assert torch.equal(counts, wanted)


@pytest.mark.cuda
@needs_cuda
@both
@pytest.mark.parametrize("num_classes", [19, 171])
def test_cpu_and_gpu_agree(function, num_classes):
    for dtype in ("uint8", "int64"):
        prediction, target = maps_of(num_classes, shape=(2, 500, 700), dtype=dtype)
        on_gpu = function(prediction.cuda(), target.cuda(), num_classes)
        assert torch.equal(on_gpu.cpu(), function(prediction, target, num_classes))
