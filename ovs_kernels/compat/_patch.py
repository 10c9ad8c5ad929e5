"""`patch`: puts drop-ins under the names of the modules that they stand for, and takes them away again."""

import logging
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType, TracebackType

from .._checks import kind_text, wrong_type, wrong_value
from ._finder import Finder
from ._registry import DROP_INS, Attributes, LeaveAlone

LOGGER = logging.getLogger("ovs_kernels.compat")
OWN_PACKAGE = "ovs_kernels"

# Guards `_in_place` and what a handle has recorded. Nothing is imported and no stranger's code runs while it is held.
_lock = threading.RLock()
_in_place: dict[str, "Patch"] = {}


def patch(*names: str) -> "Patch":
    """Puts drop-ins under the names of the modules that they stand for, as a call or in a `with` statement.

    Whole modules ("pydensecrf.densecrf") are replaced in `sys.modules`, whether the original was imported before, is
    imported later or is not installed at all. Functions and classes inside of modules that otherwise stay ("PAMR" in
    "models.tcl.pamr") are replaced there, at once or when the module is imported. In all modules imported before,
    global variables that are the original module, function or class (`from pamr import PAMR`) become the drop-in.

    What it does not touch: instances and subclasses of an original class, attributes of objects and classes, default
    arguments, local variables; numbers. A class that has the name and arguments of a drop-in but other results
    is left alone, with a warning.

    Each replacement is one INFO line of the logger "ovs_kernels.compat" and one entry of `.replaced`.

    Args:
        names: drop-ins, of "featup", "lposs", "pamr", "pydensecrf"; all of them without names.

    Returns:
        A handle: `.undo()` takes the drop-ins away again, and so does leaving the `with` statement. What was replaced
        is restored, unless somebody has put something else there since; what a module bound while it was imported in
        between stays. Handles can be undone in any order.

    Raises:
        TypeError: a name that is no string.
        ValueError: an unknown name; a name given twice or in place already.

    Example:
        >>> from ovs_kernels import compat
        >>> with compat.patch("pydensecrf") as handle:
        ...     import pydensecrf.densecrf as dcrf
        ...     dcrf.DenseCRF2D.__module__
        'ovs_kernels.compat.pydensecrf.densecrf'
        >>> print(handle.replaced[1])
        pydensecrf.densecrf -> ovs_kernels.compat.pydensecrf.densecrf
    """
    for name in names:
        if not isinstance(name, str):
            wrong_type("patch", "names", "strings", kind_text(name))
        if name not in DROP_INS:
            wrong_value("patch", "names", " or ".join(map(repr, sorted(DROP_INS))), repr(name))
        if names.count(name) > 1:
            wrong_value("patch", "names", "each drop-in once", f"{name!r} twice")
    chosen = tuple(names or sorted(DROP_INS))
    for name in chosen:
        DROP_INS[name].load()
    with _lock:
        for name in chosen:
            if name in _in_place:
                found = f"{name!r}, in place by {_in_place[name].call}"
                wrong_value("patch", "names", "drop-ins that are not in place yet", found)
        handle = Patch(chosen)
        _in_place.update(dict.fromkeys(chosen, handle))
        handle.active = True
    try:
        handle._install()
    except BaseException:
        handle.undo()
        raise
    return handle


@dataclass(frozen=True)
class Replacement:
    """One thing that was replaced: `original` is a full name, `by` ours, `note` why a module was served at all."""

    original: str
    by: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.original} -> {self.by}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Refusal:
    """One thing that was left alone, and why."""

    original: str
    reason: str

    def __str__(self) -> str:
        return f"{self.original} left alone: {self.reason}"


_ABSENT = object()


class Patch:
    """What `patch` returns.

    Attributes:
        names: the drop-ins.
        replaced: list of `Replacement`, in order; grows while modules are imported.
        left_alone: list of `Refusal`: what had the name of an original, but is something else.
        active: whether it is in place.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.replaced: list[Replacement] = []
        self.left_alone: list[Refusal] = []
        self.active = False
        # namespace (a module's dict or sys.modules), key, what was there, what is there now
        self._changes: list[tuple[dict, str, object, object]] = []
        drop_ins = [DROP_INS[name] for name in names]
        self.modules = {name: ours for drop_in in drop_ins for name, ours in drop_in.modules.items()}
        self.groups = [group for drop_in in drop_ins for group in drop_in.attributes]
        self._finder = Finder(self)

    @property
    def call(self) -> str:
        """The call that made it."""
        return f"patch({', '.join(map(repr, self.names))})"

    def undo(self) -> None:
        """Restores what was replaced.

        Raises:
            RuntimeError: it was undone before.
        """
        with _lock:
            if not self.active:
                raise RuntimeError(f"patch: undo: expected a patch that is in place, got {self.call}, undone before")
            self._restore()
            for name in self.names:
                del _in_place[name]

    def __enter__(self) -> "Patch":
        if not self.active:
            raise RuntimeError(f"patch: with: expected a patch that is in place, got {self.call}, undone before")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.active:
            self.undo()

    def __repr__(self) -> str:
        state = "in place" if self.active else "undone"
        lines = [f"<ovs_kernels.compat.{self.call}, {state}, {len(self.replaced)} replaced"]
        return "\n  ".join([*lines, *map(str, self.replaced), *map(str, self.left_alone)]) + ">"

    def _install(self) -> None:
        with _lock:
            self._substitute(self._replace_modules())
            sys.meta_path.insert(0, self._finder)
        # What is imported from here on is the finder's.
        pairs = []
        for module_name, module in _modules():
            for group in self.groups:
                if group.matches(module_name):
                    pairs += self.attribute_pairs(module_name, module, group)
        with _lock:
            self._substitute(pairs)

    # The next four run under _lock.

    def _replace_modules(self) -> list[tuple[object, object, str]]:
        """In sys.modules; returns (original, ours, our name) of modules, functions and classes."""
        substitutes: list[tuple[object, object, str]] = []
        roots = {name for name in self.modules if "." not in name}
        for name, by in sorted(self.modules.items()):
            original, ours = sys.modules.get(name), sys.modules[by]
            if original is ours:
                continue
            if original is not None:
                substitutes.append((original, ours, by))
                substitutes += _public_pairs(original, ours)
            if original is not None or name.partition(".")[0] in roots:
                self._change(sys.modules, name, ours, Replacement(name, by))
        return substitutes

    def _substitute(self, substitutes: list[tuple[object, object, str]]) -> None:
        """In the globals of all modules but the replaced ones, which stay whole."""
        known = {id(original): (ours, by) for original, ours, by in substitutes}
        whole = {id(original) for original, _, _ in substitutes if isinstance(original, ModuleType)}
        for module_name, module in _modules():
            if id(module) in whole:
                continue
            for key, value in list(vars(module).items()):
                if id(value) in known:
                    ours, by = known[id(value)]
                    self._change(vars(module), key, ours, Replacement(f"{module_name}.{key}", by))
        for original, _, _ in substitutes:
            for subclass in _subclasses(original):
                if id(subclass) in known:
                    continue
                name = f"{subclass.__module__}.{subclass.__qualname__}"
                self.left_alone.append(Refusal(name, f"a subclass of {original.__name__} made before"))

    def _restore(self) -> None:
        """In the reverse order; what is no longer what we put there is somebody else's."""
        self.active = False
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        while self._changes:
            namespace, key, before, now = self._changes.pop()
            if namespace.get(key, _ABSENT) is not now:
                continue
            if before is _ABSENT:
                del namespace[key]
            else:
                namespace[key] = before

    def _change(
        self, namespace: dict, key: str, ours: object, replacement: Replacement | None, level: int = logging.INFO
    ) -> None:
        self._changes.append((namespace, key, namespace.get(key, _ABSENT), ours))
        namespace[key] = ours
        if replacement is not None:
            self.replaced.append(replacement)
            LOGGER.log(level, "%s", replacement)

    def attribute_pairs(self, module_name: str, module: ModuleType, group: Attributes) -> list:
        """(original, ours, our name) of those attributes of the module that can be replaced."""
        pairs = []
        for name in group.names:
            original = vars(module).get(name)
            ours = getattr(import_module(group.stand_in), name)
            if original is None or original is ours or _derives(original, ours):
                continue
            try:
                ours = group.adapt(original, ours)
            except LeaveAlone as reason:
                refusal = Refusal(f"{module_name}.{name}", str(reason))
                self.left_alone.append(refusal)
                LOGGER.warning("%s", refusal)
            else:
                pairs.append((original, ours, f"{group.stand_in}.{name}"))
        return pairs

    # For the finder.

    def replace_inside(self, name: str, module: ModuleType, group: Attributes) -> None:
        """Replaces attributes of a module that has just been imported."""
        pairs = self.attribute_pairs(name, module, group) if self.active else []
        with _lock:
            for original, ours, by in pairs if self.active else []:
                for key, value in list(vars(module).items()):
                    if value is original:
                        self._change(vars(module), key, ours, Replacement(f"{name}.{key}", by))

    def serve(self, name: str, ours: ModuleType, note: str = "", level: int = logging.INFO) -> None:
        """Puts `ours` under `name`, where a module is being imported."""
        with _lock:
            # The import system has put an empty module there: to restore is to remove it.
            sys.modules.pop(name, None)
            if not self.active:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            parent, _, child = name.rpartition(".")
            package = sys.modules.get(parent)
            if package is not None and not _is_own(package.__name__):
                self._change(vars(package), child, ours, None)  # the import system does the same a moment later
            known = _is_own(ours.__name__)  # or an empty package
            self._change(sys.modules, name, ours, Replacement(name, ours.__name__, note) if known else None, level)


def _is_own(name: str) -> bool:
    return name == OWN_PACKAGE or name.startswith(OWN_PACKAGE + ".")


def _modules() -> Iterator[tuple[str, ModuleType]]:
    """Modules that somebody else has imported, each once."""
    seen = set()
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and not _is_own(getattr(module, "__name__", name)) and id(module) not in seen:
            seen.add(id(module))
            yield name, module


def _public_pairs(original: ModuleType, ours: ModuleType) -> list[tuple[object, object, str]]:
    """The functions and classes that both have."""
    names = [name for name in getattr(ours, "__all__", ()) if callable(vars(original).get(name))]
    return [(vars(original)[name], getattr(ours, name), f"{ours.__name__}.{name}") for name in names]


def _derives(original: object, ours: object) -> bool:
    return isinstance(original, type) and isinstance(ours, type) and issubclass(original, ours)


def _subclasses(original: object) -> list[type]:
    if not isinstance(original, type):
        return []
    return [subclass for subclass in original.__subclasses__() if not _is_own(subclass.__module__)]
