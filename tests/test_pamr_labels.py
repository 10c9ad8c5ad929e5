"""`pamr(labels=True)`: the class of the largest result, without the results."""

import math

import numpy as np
import pytest
import torch
from pamr_inputs import CASES, case, expected_of, inputs, refined

from ovs_kernels import pamr
from ovs_kernels.reference.pamr import pamr_labels


def check(labels, expected, share=0.9):
    """Equal where the best class is ahead by more than rounding; that is most pixels."""
    best = expected.topk(min(2, len(expected)), 0).values
    sure = best[0] - best[-1] > 1e-4 * expected.abs().max()
    sure |= torch.tensor(len(expected) == 1)
    assert labels.shape == expected.shape[1:]
    assert sure.double().mean() > share
    assert torch.equal(labels.cpu().long()[sure], expected.argmax(0)[sure])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels(device, to_device, name, dtype):
    image, scores, options = case(name, dtype)
    labels = pamr(to_device(image), to_device(scores), labels=True, **options)
    assert labels.dtype == torch.uint8
    assert labels.device == to_device(scores).device
    # Many iterations bring neighbouring classes together.
    check(labels, expected_of(name), 0.5 if name in ("many iterations", "one row", "one column") else 0.9)
    assert torch.equal(labels.long(), pamr(to_device(image), to_device(scores), **options).argmax(0))


@pytest.mark.parametrize("num_classes", [1, 255, 256, 300])
def test_dtype_of_the_labels(device, to_device, num_classes):
    image, scores = inputs(num_classes, 3, (9, 11))
    labels = pamr(to_device(image), to_device(scores), num_iter=2, labels=True)
    assert labels.dtype == (torch.uint8 if num_classes <= 255 else torch.int32)
    assert torch.equal(labels.cpu().long(), pamr(to_device(image), to_device(scores), num_iter=2).argmax(0).cpu())


# Sets of rows (see test_pamr.py), several passes, several chunks of classes, one thread and two.
@pytest.mark.parametrize(("height", "num_iter", "dilations"), [(34, 12, (4, 8)), (33, 25, (8, 16)), (21, 7, (1, 3))])
@pytest.mark.parametrize("num_classes", [3, 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_matter(height, num_iter, dilations, num_classes, threads):
    image, scores = inputs(num_classes, 3, (height, 20))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        labels = pamr(image, scores, num_iter=num_iter, dilations=dilations, labels=True)
        values = pamr(image, scores, num_iter=num_iter, dilations=dilations)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(labels.long(), values.argmax(0))
    check(labels, refined(image, scores, num_iter, dilations), 0.5)


def test_batches_and_sizes(device, to_device):
    image, scores = inputs(4, 3, (20, 23))
    images, small = torch.stack((image, image.flip(2))), torch.stack((scores, scores.flip(0)))[..., ::2, ::3]
    labels = pamr(to_device(images), to_device(small), num_iter=3, labels=True)
    assert labels.shape == (2, 20, 23)
    for one, picture, part in zip(labels, images, small, strict=True):
        check(one, refined(picture, part, 3))
    half = pamr(to_device(images), to_device(small.half()), num_iter=3, labels=True)
    assert torch.equal(half, pamr(to_device(images), to_device(small.half().float()), num_iter=3, labels=True))


def test_ties_go_to_the_smallest_class(device, to_device):
    image, scores = inputs(5, 3, (17, 22))
    scores[3] = scores[1]
    scores[4] = scores[1]
    labels = pamr(to_device(image), to_device(scores), num_iter=3, labels=True)
    assert labels.max() <= 2
    assert labels.eq(1).any()
    same = scores[:1].expand(70, -1, -1)
    assert pamr(to_device(image), to_device(same), num_iter=3, labels=True).eq(0).all()


@pytest.mark.parametrize("num_iter", [0, 2])
def test_nan_never_wins(device, to_device, num_iter):
    image, scores = inputs(4, 3, (17, 22))
    scores[0] = math.nan
    labels = pamr(to_device(image), to_device(scores), num_iter=num_iter, labels=True).cpu()
    others = pamr(to_device(image), to_device(scores[1:]), num_iter=num_iter, labels=True).cpu()
    assert torch.equal(labels, others + 1)
    nothing = torch.full((3, 17, 22), math.nan)
    nothing[2] = -math.inf
    assert pamr(to_device(image), to_device(nothing), num_iter=num_iter, labels=True).eq(0).all()
    image[:] = math.nan
    if num_iter:
        assert pamr(to_device(image), to_device(scores), num_iter=num_iter, labels=True).eq(0).all()


def test_nothing_to_do(device, to_device):
    for shape in ((3, 0, 6), (3, 5, 0), (0, 3, 5, 6), (2, 0, 0, 6), (0, 0, 5)):
        image = torch.rand(*shape[:-3], 3, *shape[-2:])
        result = pamr(to_device(image), to_device(torch.rand(shape)), labels=True)
        assert (tuple(result.shape), result.dtype) == (shape[:-3] + shape[-2:], torch.uint8)
    with pytest.raises(ValueError, match=r"^pamr: scores: expected at least one class for labels=True, got C=0$"):
        pamr(to_device(torch.rand(3, 5, 6)), to_device(torch.rand(0, 5, 6)), labels=True)


def test_no_gradient_and_numpy():
    image, scores = inputs(3, 3, (9, 11))
    labels = pamr(image, scores.requires_grad_(), num_iter=2, labels=True)
    assert not labels.requires_grad
    array = pamr(image.numpy(), scores.detach().numpy(), num_iter=2, labels=True)
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, labels.numpy())


def test_definition():
    image, scores = inputs(3, 3, (9, 11))
    labels = pamr_labels(image.double()[None], scores.double()[None], num_iter=2, dilations=(1, 2))[0]
    assert torch.equal(labels.long(), refined(image, scores, 2, (1, 2)).argmax(0))
    scores[:] = math.nan
    scores[2, 4, 5] = 1.0
    one = pamr_labels(image[None], scores[None], num_iter=0, dilations=(1, 2))[0]
    assert one.sum() == 2
    assert one[4, 5] == 2


def test_less_memory_than_the_scores():
    from ovs_kernels import _native

    module = _native.module()
    if module is None:
        pytest.skip("the compiled module is missing")
    dilations = torch.tensor([8, 16])
    sizes = {"batch": 1, "num_features": 3, "num_classes": 21, "height": 448, "width": 597, "num_dilations": 2}
    pointers = {"image": 0, "scores": 0, "labels": 0, "dilations": dilations.data_ptr()}
    arguments = {**pointers, **sizes, "num_iter": 10, "label_bytes": 1, "dtype": 0, "num_threads": 2}
    assert module.pamr_labels_cpu_workspace_bytes(**arguments) < 0.9 * 4 * 21 * 448 * 597
    arguments = {name: value for name, value in arguments.items() if name not in ("labels", "label_bytes")}
    assert module.pamr_cpu_workspace_bytes(**arguments, out=0) < 0.5 * 4 * 21 * 448 * 597
