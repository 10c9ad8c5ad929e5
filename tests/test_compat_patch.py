"""`ovs_kernels.compat.patch`: before and after import, without the original, errors, undo."""

import copy
import importlib
import io
import logging
import sys
import threading
import types

import pytest
import torch

from ovs_kernels import compat
from ovs_kernels.compat import _registry
from ovs_kernels.compat._registry import Attributes, DropIn
from ovs_kernels.compat.pamr import PAMR

PUBLISHED_PAMR = '''
import torch
from torch import nn
from torch.nn.functional import pad

OTHER = object()


def neighbours(x, dilations):
    """[B, C, 8 * len(dilations), H, W], edges repeated."""
    h, w = x.shape[-2:]
    out = []
    for d in dilations:
        p = pad(x, [d] * 4, mode="replicate")
        out += [p[..., y : y + h, v : v + w] for y in (0, d, 2 * d) for v in (0, d, 2 * d) if (y, v) != (d, d)]
    return torch.stack(out, 2)


class PAMR(nn.Module):
    def __init__(self, num_iter=NUM_ITER, dilations=DILATIONS):
        super().__init__()
        self.num_iter, self.dilations = num_iter, dilations

    def forward(self, x, mask):
        mask = nn.functional.interpolate(mask, size=x.shape[-2:], mode="bilinear", align_corners=True)
        around = neighbours(x, self.dilations)
        # the deviation is over the eight neighbours and the pixel itself, of each dilation
        sets = around.unflatten(2, (len(self.dilations), 8))
        sets = torch.cat((sets, x[:, :, None, None].expand(-1, -1, len(self.dilations), 1, -1, -1)), 3)
        std = sets.flatten(2, 3).std(2, keepdim=True)
        weights = (-(around - x[:, :, None]).abs() / (1e-8 + 0.1 * std)).mean(1, keepdim=True).softmax(2)
        for _ in range(self.num_iter):
            mask = (neighbours(mask, self.dilations) * weights).sum(2)
        return mask POWER
'''


def pamr_source(num_iter="1", dilations="[1]", power=""):
    source = PUBLISHED_PAMR.replace("NUM_ITER", num_iter).replace("DILATIONS", dilations)
    return source.replace("POWER", power)


@pytest.fixture
def codebase(tmp_path, monkeypatch):
    """Writes files that can be imported; afterwards nothing of them is left in sys.modules."""
    PAMR()(torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4))  # whatever that imports
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(sys.modules)
    path, finders = list(sys.path), list(sys.meta_path)

    def write(**files):
        for name, text in files.items():
            file = tmp_path / (name.replace("__", "/") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            for folder in file.relative_to(tmp_path).parents:
                (tmp_path / folder / "__init__.py").touch()
            file.write_text(text)
        importlib.invalidate_caches()

    yield write
    assert sys.path == path
    assert sys.meta_path == finders
    for name in [name for name in sys.modules if name not in before]:
        if getattr(sys.modules[name], "__file__", None) is None or str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


@pytest.fixture
def drop_ins(monkeypatch):
    """Further entries of the registry: `drop_ins(name, DropIn(...))`."""
    return lambda name, drop_in: monkeypatch.setitem(_registry.DROP_INS, name, drop_in)


def our_module(monkeypatch, name, **attributes):
    module = types.ModuleType(f"ovs_kernels.compat.{name}")
    vars(module).update(attributes, __all__=list(attributes))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def snapshot(*modules):
    return dict(sys.modules), [dict(vars(module)) for module in modules], list(sys.meta_path)


# Inside of modules


def test_attribute_of_an_imported_module_and_of_those_that_imported_it(codebase):
    codebase(shop__models__pamr=pamr_source(), shop__segmentor="from shop.models.pamr import PAMR as Refiner, OTHER\n")
    segmentor = importlib.import_module("shop.segmentor")
    source = sys.modules["shop.models.pamr"]
    original, before = source.PAMR, snapshot(source, segmentor)
    handle = compat.patch("pamr")
    assert source.PAMR is PAMR
    assert segmentor.Refiner is PAMR
    assert segmentor.OTHER is source.OTHER
    assert source.neighbours.__module__ == "shop.models.pamr"
    assert [str(line) for line in handle.replaced] == [
        "shop.models.pamr.PAMR -> ovs_kernels.compat.pamr.PAMR",
        "shop.segmentor.Refiner -> ovs_kernels.compat.pamr.PAMR",
    ]
    assert repr(handle).splitlines() == [
        "<ovs_kernels.compat.patch('pamr'), in place, 2 replaced",
        "  shop.models.pamr.PAMR -> ovs_kernels.compat.pamr.PAMR",
        "  shop.segmentor.Refiner -> ovs_kernels.compat.pamr.PAMR>",
    ]
    handle.undo()
    assert source.PAMR is original
    assert segmentor.Refiner is original
    assert snapshot(source, segmentor) == before
    assert "undone" in repr(handle)


def test_attribute_of_a_module_imported_later(codebase, caplog):
    codebase(shop__models__pamr=pamr_source(), shop__segmentor="from shop.models.pamr import PAMR\n")
    with compat.patch("pamr") as handle, caplog.at_level(logging.INFO, "ovs_kernels.compat"):
        assert handle.replaced == []
        segmentor = importlib.import_module("shop.segmentor")
        source = sys.modules["shop.models.pamr"]
        assert segmentor.PAMR is source.PAMR is PAMR
        assert source.__spec__.loader is source.__loader__
        assert type(source.__loader__).__module__ == "_frozen_importlib_external"
    assert caplog.messages == ["shop.models.pamr.PAMR -> ovs_kernels.compat.pamr.PAMR"]
    assert source.PAMR.__module__ == "shop.models.pamr"
    assert segmentor.PAMR is PAMR  # bound while in place, as documented


def test_a_reload_is_replaced_and_undone_too(codebase):
    codebase(pamr=pamr_source())
    source = importlib.import_module("pamr")
    with compat.patch("pamr") as handle:
        importlib.reload(source)
        assert source.PAMR is PAMR
        assert len(handle.replaced) == 2
    assert source.PAMR.__module__ == "pamr"


def test_other_defaults_are_kept(codebase):
    codebase(shop__pamr=pamr_source("10", "[1, 2, 4]"))
    source = importlib.import_module("shop.pamr")
    original = source.PAMR()
    x, mask = torch.rand(1, 3, 12, 15), torch.rand(1, 4, 12, 15)
    with compat.patch("pamr"):
        ours = source.PAMR()
        assert isinstance(ours, PAMR)
        assert (ours.num_iter, ours.aff_m.dilations) == (10, (1, 2, 4))
        torch.testing.assert_close(ours(x, mask), original(x, mask), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(source.PAMR(3, [2])(x, mask), PAMR(3, [2])(x, mask), rtol=0, atol=0)
        file = io.BytesIO()
        torch.save(ours, file)
        again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        assert type(again) is PAMR
        assert torch.equal(again(x, mask), ours(x, mask))
        assert torch.equal(copy.deepcopy(ours)(x, mask), ours(x, mask))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (pamr_source(power="** 2"), "it computes something else: results differ by"),
        ("class PAMR:\n    pass\n", "it is no torch.nn.Module"),  # passive aggressive mean reversion, say
        (pamr_source().replace("dilations=[1]", "dilations=[1], t=1"), "does not take (num_iter, dilations)"),
        (pamr_source().replace("weights = ", "raise KeyError(3)\n        weights = "), "KeyError: 3"),
    ],
)
def test_what_is_something_else_is_left_alone(codebase, caplog, source, reason):
    codebase(shop__pamr=source)
    with compat.patch("pamr") as handle:
        module = importlib.import_module("shop.pamr")
        assert module.PAMR.__module__ == "shop.pamr"
        assert handle.replaced == []
        (refusal,) = handle.left_alone
        assert refusal.original == "shop.pamr.PAMR"
        assert reason in refusal.reason
        assert str(refusal) in repr(handle)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_check_leaves_random_numbers_alone(codebase):
    codebase(shop__pamr=pamr_source().replace("mask = nn", "torch.rand(3)\n        mask = nn"))
    module = importlib.import_module("shop.pamr")
    state = torch.get_rng_state()
    with compat.patch("pamr"):
        assert module.PAMR is PAMR
    assert torch.equal(torch.get_rng_state(), state)


def test_subclasses_are_named_and_stay(codebase):
    codebase(shop__pamr=pamr_source(), shop__mine="from shop import pamr\nclass Mine(pamr.PAMR):\n    pass\n")
    mine = importlib.import_module("shop.mine").Mine
    with compat.patch("pamr") as handle:
        assert not issubclass(mine, PAMR)
        assert [str(line) for line in handle.left_alone] == [
            "shop.mine.Mine left alone: a subclass of PAMR made before"
        ]


def test_a_module_that_is_not_installed_is_served(codebase, caplog):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pamr")
    with compat.patch("pamr") as handle:
        served = importlib.import_module("pamr")
        assert served.PAMR is PAMR
        assert str(handle.replaced[0]) == "pamr -> ovs_kernels.compat.pamr (not installed)"
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("nowhere.pamr")  # only names that are known to be meant
    assert "pamr" not in sys.modules
    assert caplog.records == []  # nothing to warn of
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pamr")


def test_a_module_that_cannot_be_imported_is_served(codebase, caplog):
    codebase(pamr="import a_package_that_nobody_has\n" + pamr_source())
    with compat.patch("pamr") as handle:
        assert importlib.import_module("pamr").PAMR is PAMR
        assert "cannot be imported: No module named 'a_package_that_nobody_has'" in str(handle.replaced[0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pamr")


def test_missing_packages_that_only_the_replaced_needs(codebase, drop_ins, monkeypatch):
    """As LPOSS with cupy: the rest of its module is used as it is."""
    codebase(
        shop__solver="import nocupy as cp, nocupy.sparse.linalg\nfrom nocupy.sparse import csr_matrix, eye\n"
        "def solve(x):\n    return csr_matrix(x)\n"
        "def other(x):\n    return cp.zeros(x)\n"
        "def both(x):\n    return solve(x) + 1\n"
    )
    our_module(monkeypatch, "solver", solve=lambda x: 10 * x)
    group = Attributes(("shop.solver",), "ovs_kernels.compat.solver", ("solve",), optional=("nocupy",))
    drop_ins("solver", DropIn(attributes=(group,)))
    with compat.patch("solver") as handle:
        module = importlib.import_module("shop.solver")
        assert module.both(2) == 21
        assert [str(line) for line in handle.replaced] == ["shop.solver.solve -> ovs_kernels.compat.solver.solve"]
        with pytest.raises(ImportError, match=r"nocupy\.zeros was called, but nocupy is not installed"):
            module.other(3)
        assert not any(name.startswith("nocupy") for name in sys.modules)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("nocupy")


def test_two_patches_inside_of_one_module(codebase, drop_ins, monkeypatch):
    codebase(shop__tools="def saw():\n    return 'theirs'\ndef axe():\n    return 'theirs'\n")
    for name in ("saw", "axe"):
        our_module(monkeypatch, f"tool_{name}", **{name: lambda: "ours"})
        group = Attributes(("shop.*",), f"ovs_kernels.compat.tool_{name}", (name,))
        drop_ins(name, DropIn(attributes=(group,)))
    first, second = compat.patch("saw"), compat.patch("axe")
    tools = importlib.import_module("shop.tools")
    assert (tools.saw(), tools.axe()) == ("ours", "ours")
    assert type(tools.__loader__).__module__ == "_frozen_importlib_external"
    first.undo()
    assert (tools.saw(), tools.axe()) == ("theirs", "ours")
    second.undo()
    assert (tools.saw(), tools.axe()) == ("theirs", "theirs")


# Whole modules


@pytest.fixture
def farm(drop_ins, monkeypatch):
    """A drop-in for the package `farm` and its module `farm.barn`."""
    barn = our_module(monkeypatch, "farm.barn", milk=lambda: "ours", Cow=type("Cow", (), {}), LIMIT=3)
    farm = our_module(monkeypatch, "farm", barn=barn)
    farm.__path__ = []
    drop_ins("farm", DropIn({"farm": "ovs_kernels.compat.farm", "farm.barn": "ovs_kernels.compat.farm.barn"}))
    return farm


BARN = "import farm.hay as hay\nLIMIT = 3\ndef milk():\n    return hay.milk()\nclass Cow:\n    pass\n"
USER = "import farm\nimport farm.barn as shed\nfrom farm.barn import milk, Cow as Animal, LIMIT\nfrom farm import hay\n"


def test_imported_before(codebase, farm):
    codebase(farm__barn=BARN, farm__hay="def milk():\n    return 'theirs'\n", user=USER)
    user = importlib.import_module("user")
    original, barn = sys.modules["farm"], sys.modules["farm.barn"]
    before = snapshot(user, original, barn)
    with compat.patch("farm") as handle:
        assert (user.farm, user.shed, user.milk(), user.Animal) == (farm, farm.barn, "ours", farm.barn.Cow)
        assert user.LIMIT == 3
        assert user.hay.milk() == "theirs"
        assert barn.milk() == "theirs"  # originals stay whole
        assert importlib.import_module("farm.barn") is farm.barn
        names = {str(line).split(" -> ")[0] for line in handle.replaced}
        assert names == {"farm", "farm.barn", "user.farm", "user.shed", "user.milk", "user.Animal"}
    assert snapshot(user, original, barn) == before


def test_subclasses_that_are_replaced_too_are_not_left_alone(codebase, farm):
    farm.barn.Calf = type("Calf", (farm.barn.Cow,), {})
    farm.barn.__all__.append("Calf")
    codebase(
        farm__barn=BARN + "class Calf(Cow):\n    pass\n",
        farm__hay="",
        user="import farm.barn\nclass Mine(farm.barn.Calf):\n    pass\n",
    )
    importlib.import_module("user")
    with compat.patch("farm") as handle:
        assert [refusal.original for refusal in handle.left_alone] == ["user.Mine"]


def test_imported_later_instead_of_what_is_installed(codebase, farm):
    codebase(
        farm__barn="raise AssertionError('executed')\n", user="import farm.barn as b\nfrom farm.barn import milk\n"
    )
    with compat.patch("farm"):
        user = importlib.import_module("user")
        assert (user.b, user.milk()) == (farm.barn, "ours")
        del sys.modules["farm.barn"]  # somebody cleans up
        assert importlib.import_module("farm.barn") is farm.barn
    assert "farm" not in sys.modules
    assert "farm.barn" not in sys.modules
    assert farm.barn.milk() == "ours"
    with pytest.raises(AssertionError, match="executed"):
        importlib.import_module("farm.barn")


def test_ours_are_not_replaced(codebase, farm, monkeypatch):
    monkeypatch.setitem(sys.modules, "farm", farm)  # by hand
    codebase(mine__pamr="from ovs_kernels.compat.pamr import PAMR\nclass Other(PAMR):\n    pass\n")
    mine = importlib.import_module("mine.pamr")
    before = snapshot(mine)
    with compat.patch("farm", "pamr") as handle:
        assert [str(line) for line in handle.replaced] == ["farm.barn -> ovs_kernels.compat.farm.barn"]
        assert handle.left_alone == []
    assert snapshot(mine) == before


def test_below_packages_that_are_not_installed(codebase, drop_ins, monkeypatch):
    """As featup.adaptive_conv_cuda.adaptive_conv: the packages above are empty, and go with it."""
    ours = our_module(monkeypatch, "leaf", grow=lambda: "ours")
    drop_ins("leaf", DropIn({"tree.branch.leaf": "ovs_kernels.compat.leaf"}))
    before = snapshot()
    with compat.patch("leaf"):
        import tree.branch.leaf
        from tree.branch.leaf import grow

        assert grow() == "ours"
        assert tree.branch.leaf is ours
        with pytest.raises(ModuleNotFoundError, match=r"tree\.root"):
            importlib.import_module("tree.root")
    assert snapshot() == before


def test_below_packages_that_are_installed(codebase, drop_ins, monkeypatch):
    codebase(tree__branch__twig="LENGTH = 3\n")
    ours = our_module(monkeypatch, "leaf", grow=lambda: "ours")
    drop_ins("leaf", DropIn({"tree.branch.leaf": "ovs_kernels.compat.leaf"}))
    branch = importlib.import_module("tree.branch")
    before = set(vars(branch))
    with compat.patch("leaf"):
        assert importlib.import_module("tree.branch.leaf") is ours
        assert branch.leaf is ours
        assert importlib.import_module("tree.branch.twig").LENGTH == 3
    assert set(vars(branch)) - before == {"twig"}


# Undo and errors


def test_undo_in_any_order(codebase, farm):
    codebase(pamr=pamr_source(), user="from pamr import PAMR\n")
    user = importlib.import_module("user")
    original, before = user.PAMR, snapshot(user)
    for order in ((0, 1), (1, 0)):
        handles = [compat.patch("pamr"), compat.patch("farm")]
        assert (user.PAMR, sys.modules["farm"]) == (PAMR, farm)
        handles[order[0]].undo()
        assert [handle.active for handle in handles] == [order[0] == 1, order[0] == 0]
        assert ("farm" in sys.modules, user.PAMR is PAMR) == (order[0] == 0, order[0] == 1)
        handles[order[1]].undo()
        assert user.PAMR is original
        assert snapshot(user) == before


def test_what_somebody_else_put_there_stays(codebase):
    codebase(shop__pamr=pamr_source())
    module = importlib.import_module("shop.pamr")
    with compat.patch("pamr"):
        module.PAMR = "somebody else's"
    assert module.PAMR == "somebody else's"


def test_undone_after_an_exception_and_by_hand(codebase):
    with pytest.raises(KeyError), compat.patch("pamr") as handle:
        raise KeyError
    assert not handle.active
    with compat.patch("pamr") as handle:
        handle.undo()
    with pytest.raises(RuntimeError, match=r"patch: undo: expected a patch that is in place, got patch\('pamr'\), un"):
        handle.undo()
    with pytest.raises(RuntimeError, match="patch: with: expected a patch that is in place"), handle:
        pass


def test_all_of_them(codebase):
    with compat.patch() as handle:
        assert handle.names == tuple(sorted(_registry.DROP_INS))
        assert "pamr" in handle.names


def test_errors(codebase, farm):
    with pytest.raises(ValueError, match=r"^patch: names: expected .*'pamr'.*, got 'pydensecrf2'$"):
        compat.patch("pydensecrf2")
    with pytest.raises(TypeError, match=r"^patch: names: expected strings, got list$"):
        compat.patch(["pamr"])
    with pytest.raises(ValueError, match=r"^patch: names: expected each drop-in once, got 'pamr' twice$"):
        compat.patch("pamr", "farm", "pamr")
    with compat.patch("pamr"):
        before = snapshot()
        expected = (
            r"^patch: names: expected drop-ins that are not in place yet, got 'pamr', in place by patch\('pamr'\)$"
        )
        with pytest.raises(ValueError, match=expected):
            compat.patch("farm", "pamr")
        with pytest.raises(ValueError, match=expected):
            compat.patch()
        assert snapshot() == before
    compat.patch("pamr").undo()


def test_a_failure_half_way_leaves_nothing(codebase, farm, monkeypatch):
    codebase(farm__barn="", user="import farm.barn\n")
    user = importlib.import_module("user")
    before = snapshot(user)
    with monkeypatch.context() as broken:
        broken.setattr(compat.Patch, "_substitute", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            compat.patch("farm")
    assert snapshot(user)[1:] == before[1:]
    assert sys.modules["farm"] is before[0]["farm"]


def test_threads(codebase):
    """Of many that patch at once one succeeds; imports meanwhile end."""
    codebase(**{f"shop__m{i}__pamr": pamr_source() for i in range(8)})
    outcomes, barrier = [], threading.Barrier(8)

    def work(index):
        barrier.wait()
        try:
            handle = compat.patch("pamr")
        except ValueError:
            outcomes.append("refused")
        else:
            outcomes.append(handle)
        importlib.import_module(f"shop.m{index}.pamr")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    handles = [outcome for outcome in outcomes if outcome != "refused"]
    assert len(outcomes) == 8
    assert len(handles) == 1
    handles[0].undo()
    assert {sys.modules[f"shop.m{i}.pamr"].PAMR.__module__ for i in range(8)} == {f"shop.m{i}.pamr" for i in range(8)}


def test_entries_of_the_registry_are_disjoint():
    modules = [name for drop_in in _registry.DROP_INS.values() for name in drop_in.modules]
    assert len(set(modules)) == len(modules)
    pairs = [
        (module, name)
        for drop_in in _registry.DROP_INS.values()
        for group in drop_in.attributes
        for module in group.modules
        for name in group.names
    ]
    assert len(set(pairs)) == len(pairs)


def test_what_the_registry_names_exists():
    for drop_in in _registry.DROP_INS.values():
        for name in drop_in.modules.values():
            assert importlib.import_module(name).__all__
        for group in drop_in.attributes:
            assert all(hasattr(importlib.import_module(group.stand_in), name) for name in group.names)
