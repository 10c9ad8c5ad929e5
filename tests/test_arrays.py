"""The array adapter: every kind in, the same kind out, nothing guessed."""

import dataclasses
import typing
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from ovs_kernels import _arrays, _native, lp_pixels
from ovs_kernels._arrays import accepts_arrays


@dataclasses.dataclass(frozen=True)
class Details:
    counts: Tensor
    note: str


class Pair(typing.NamedTuple):
    first: Tensor
    second: Tensor | None


@accepts_arrays("first", "second", indices=("groups",))
def combine(
    first: Tensor,
    second: Tensor | None = None,
    *,
    groups: Tensor | None = None,
    steps: int = 1,
    factor: float = 1.0,
    flag: bool = False,
    mode: str | None = None,
    cap: int | None = None,
    sizes: list[int] | None = None,
):
    """What arrived, as a dictionary."""
    combine.seen = dict(locals())
    return first * factor


@pytest.fixture
def seen():
    """Calls `combine` and returns what it got."""

    def call(*args, **kwargs):
        combine(*args, **kwargs)
        return combine.seen

    return call


def test_torch_tensors_pass_untouched(seen):
    first, second = torch.rand(3, requires_grad=True), torch.rand(3)
    got = seen(first, second=second)
    assert got["first"] is first
    assert got["second"] is second
    assert combine(first).requires_grad


def test_numpy_shares_memory(seen):
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    tensor = seen(array)["first"]
    assert tensor.data_ptr() == array.ctypes.data
    result = combine(array, factor=2.0)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, 2 * array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int32", "int64", "bool"])
def test_numpy_dtypes(seen, dtype):
    array = np.ones((2, 3), dtype)
    tensor = seen(array)["first"]
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert tensor.shape == (2, 3)


def odd_arrays():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    read_only = base.copy()
    read_only.flags.writeable = False
    raw = np.zeros(base.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(4, 6)
    misaligned[:] = base
    packed = np.zeros(24, np.dtype([("tag", "u1"), ("value", "f4")]))
    packed["value"] = base.ravel()
    return {
        "negative stride": base[::-1, ::-2],
        "read-only": read_only,
        "misaligned": misaligned,
        "field of a record": packed["value"],
        "broadcast": np.broadcast_to(base[0], (4, 6)),
        "transposed": base.T,
        "stepped": base[::2, 1::3],
        "0-d": np.array(3.0, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "empty and flipped": np.zeros((0, 3), np.float32)[:, ::-1],
        "one row, flipped": base[:1][::-1],
    }


@pytest.mark.parametrize("name", odd_arrays())
def test_awkward_numpy_arrays(seen, name):
    array = odd_arrays()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of read-only memory
        tensor = seen(array)["first"]
    assert tensor.shape == array.shape
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.numel() == 0 or tensor.data_ptr() % 4 == 0


def test_a_copy_protects_read_only_memory(seen):
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    seen(array)["first"].zero_()
    assert array.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3, ">f4"), "combine: first: expected native byte order, got dtype >f4"),
        pytest.param(
            np.ones(3, np.longdouble),
            f"combine: first: expected a dtype that torch has, got dtype {np.dtype(np.longdouble)}",
            marks=pytest.mark.skipif(np.finfo(np.longdouble).bits == 64, reason="longdouble is float64 here"),
        ),
        (np.array([None, 1]), "combine: first: expected a dtype that torch has, got dtype object"),
        (np.array(["a"]), "combine: first: expected a dtype that torch has, got dtype <U1"),
        (np.zeros(2, "V0"), "combine: first: expected a dtype that torch has, got dtype |V0"),
        (
            np.array(["2024-01-01"], "M8[D]"),
            "combine: first: expected a dtype that torch has, got dtype datetime64[D]",
        ),
    ],
)
def test_numpy_arrays_that_torch_cannot_read(array, message):
    with pytest.raises(TypeError) as raised:
        combine(array)
    assert str(raised.value) == message


class OnTheHost:
    """An array of another package, in host memory."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ([1.0, 2.0], "list"),
        ((1.0,), "tuple"),
        (3.0, "float"),
        ("x", "str"),
        (None, "None"),
        (np.float32(1.0), "numpy.float32"),
        (OnTheHost(torch.ones(2)), f"{__name__}.OnTheHost on DLPack device type 1"),
    ],
)
def test_other_kinds_are_refused(value, got):
    with pytest.raises(TypeError) as raised:
        combine(value)
    assert str(raised.value) == f"combine: first: expected {_arrays.ARRAY_KINDS}, got {got}"


def test_masked_arrays_are_refused():
    with pytest.raises(TypeError, match="its mask would be ignored"):
        combine(np.ma.masked_array([1.0, 2.0], [True, False]))


def test_mixed_kinds_name_both_arguments():
    message = r"^combine: second: expected numpy.ndarray \(the kind of first\), got torch.Tensor$"
    with pytest.raises(TypeError, match=message):
        combine(np.ones(2), torch.ones(2))
    message = r"^combine: second: expected torch.Tensor \(the kind of first\), got numpy.ndarray$"
    with pytest.raises(TypeError, match=message):
        combine(torch.ones(2), np.ones(2))


def test_optional_array(seen):
    assert seen(np.ones(2), None)["second"] is None
    assert seen(np.ones(2))["second"] is None
    assert isinstance(seen(np.ones(2), np.ones(3))["second"], Tensor)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
@pytest.mark.parametrize("first", [np.ones(2), torch.ones(2)])
def test_indices_of_any_kind(seen, kind, first):
    groups = seen(first, groups=kind([2, 0, 1]))["groups"]
    assert isinstance(groups, Tensor)
    assert groups.tolist() == [2, 0, 1]
    assert seen(first, groups=None)["groups"] is None


def test_indices_that_are_none(seen):
    assert seen(torch.ones(1), groups=[])["groups"].tolist() == []


@pytest.mark.parametrize(
    ("groups", "exception", "message"),
    [
        ([0.5], TypeError, r"expected integers, got list \[0.5\]"),
        ([True], TypeError, r"expected integers, got list \[True\]"),
        ("01", TypeError, "got str"),
        (3, TypeError, "got int"),
        (np.array([0.0]), TypeError, "got float64"),
        (torch.tensor([True]), TypeError, "got bool"),
        (torch.tensor(3), ValueError, r"expected \[C\], got \[\]"),
        (np.array([[1]]), ValueError, r"expected \[C\], got \[1, 1\]"),
    ],
)
def test_indices_of_a_wrong_kind(groups, exception, message):
    with pytest.raises(exception, match=f"^combine: groups: .*{message}"):
        combine(torch.ones(1), groups=groups)


def test_scalars_become_what_they_are_annotated_as(seen):
    got = seen(
        torch.ones(1),
        steps=np.int64(3),
        factor=np.float32(0.5),
        flag=np.bool_(True),
        mode=np.str_("a"),
        cap=np.uint8(9),
    )
    assert [got[name] for name in ("steps", "factor", "flag", "mode", "cap")] == [3, 0.5, True, "a", 9]
    assert [type(got[name]) for name in ("steps", "factor", "flag", "mode", "cap")] == [
        int,
        float,
        bool,
        str,
        int,
    ]
    got = seen(torch.ones(1), factor=2, mode=None, cap=None, sizes=[1, 2])
    assert type(got["factor"]) is float
    assert got["mode"] is None
    assert got["cap"] is None
    assert got["sizes"] == [1, 2]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 1.0, "expected an integer, got float"),
        ("steps", True, "expected an integer, got bool"),
        ("steps", None, "expected an integer, got None"),
        ("steps", torch.tensor(1), "expected an integer, got torch.Tensor"),
        ("factor", "1", "expected a number, got str"),
        ("factor", 1j, "expected a number, got complex"),
        ("flag", 1, "expected True or False, got int"),
        ("mode", 3, "expected a string or None, got int"),
        ("cap", 1e9, "expected an integer or None, got float"),
    ],
)
def test_scalars_of_a_wrong_type(name, value, message):
    with pytest.raises(TypeError) as raised:
        combine(torch.ones(1), **{name: value})
    assert str(raised.value) == f"combine: {name}: {message}"


def test_results_of_every_shape_come_back_in_kind():
    @accepts_arrays("array")
    def many(array: Tensor):
        return (array, [array, 1, None], Pair(array, None), Details(array.to(torch.int32), "note"))

    one, several, pair, details = many(np.ones(2))
    assert isinstance(one, np.ndarray)
    assert isinstance(several, list)
    assert isinstance(several[0], np.ndarray)
    assert several[1:] == [1, None]
    assert isinstance(pair, Pair)
    assert isinstance(pair.first, np.ndarray)
    assert pair.second is None
    assert isinstance(details, Details)
    assert isinstance(details.counts, np.ndarray)
    assert details.counts.dtype == np.int32
    assert details.note == "note"
    assert all(isinstance(part, Tensor) for part in many(torch.ones(2))[2][:1])


def test_numpy_results_carry_no_gradient():
    weight = torch.ones(2, requires_grad=True)

    @accepts_arrays("array")
    def scale(array: Tensor):
        return array * weight

    assert isinstance(scale(np.ones(2, np.float32)), np.ndarray)
    assert scale(torch.ones(2)).requires_grad


def test_python_reports_wrong_calls_itself():
    with pytest.raises(TypeError, match=r"combine\(\) missing 1 required positional argument: 'first'"):
        combine()
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        combine(torch.ones(1), wrong=1)


def test_wrapped_function_keeps_its_name_and_signature():
    assert combine.__name__ == "combine"
    assert combine.__doc__ == "What arrived, as a dictionary."
    assert lp_pixels.__doc__.startswith("Refines")


class Minimal:
    """The least that an array of a CUDA package offers: DLPack, and a namespace that makes its kind."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __array_namespace__(self):
        return Minimal

    @staticmethod
    def from_dlpack(array):
        return Minimal(torch.from_dlpack(array))


needs_cuda = pytest.mark.skipif(not _native.cuda_available(), reason="no CUDA device, or built without CUDA kernels")


@pytest.mark.cuda
@needs_cuda
def test_any_cuda_array_with_dlpack():
    scores, image = torch.rand(3, 9, 10, device="cuda"), torch.rand(3, 9, 10, device="cuda")
    result = lp_pixels(Minimal(scores), Minimal(image))
    assert isinstance(result, Minimal)
    assert torch.equal(result.tensor, lp_pixels(scores, image))
    with pytest.raises(TypeError, match=r"Minimal \(the kind of scores\), got torch.Tensor"):
        lp_pixels(Minimal(scores), image)


@pytest.mark.cuda
@needs_cuda
def test_cupy_on_a_side_stream():
    cupy = pytest.importorskip("cupy", reason="cupy is not installed")
    scores, image = np.random.rand(3, 9, 10).astype("f"), np.random.rand(3, 9, 10).astype("f")  # noqa: NPY002
    expected = lp_pixels(torch.from_numpy(scores).cuda(), torch.from_numpy(image).cuda())
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        late = cupy.asarray(scores)
        for _ in range(50):
            late = late * 1.0
        result = lp_pixels(late[:, ::-1][:, ::-1], cupy.asarray(image))
    assert isinstance(result, cupy.ndarray)
    torch.cuda.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(result), expected.cpu().numpy())
    flipped = lp_pixels(cupy.asarray(scores[:, ::-1])[:, ::-1], cupy.asarray(image))
    np.testing.assert_array_equal(cupy.asnumpy(flipped), expected.cpu().numpy())
