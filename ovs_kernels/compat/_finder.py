"""The import hook of a patch: serves drop-ins, and looks into modules once they have been imported."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from ._registry import CALL_ERRORS, Attributes

if TYPE_CHECKING:
    from ._patch import Patch

OWN_PREFIX = "ovs_kernels."

_this_thread = threading.local()  # .optional: packages that may be missing while an original is imported


class Finder(MetaPathFinder):
    """Asked before all others while its patch is in place."""

    def __init__(self, patch: "Patch"):
        self.patch = patch
        # Modules that can be served without an original, and the packages above them.
        self.alone = {name: group for group in patch.groups for name in group.modules if not _is_pattern(name)}
        served = (*patch.modules, *self.alone)
        self.packages = {name.rsplit(".", depth)[0] for name in served for depth in range(1, name.count(".") + 1)}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of what is served or wrapped under this name; None for all others."""
        patch = self.patch
        if fullname.startswith(OWN_PREFIX):
            return None
        if fullname in patch.modules:
            return self._served(fullname, patch.modules[fullname], "")
        if fullname.partition(".")[0] in getattr(_this_thread, "optional", ()):
            return _optional(fullname, self._others(fullname, path, target))
        groups = [group for group in patch.groups if group.matches(fullname)]
        if not groups and fullname not in self.packages:
            return None
        spec = self._others(fullname, path, target)
        if groups and spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Inside(self, groups, spec.loader)
        if spec is None and fullname in self.alone:
            spec = self._served(fullname, self.alone[fullname].stand_in, "not installed")
        elif spec is None and fullname in self.packages:
            spec = ModuleSpec(fullname, _Empty(patch), is_package=True)
        return spec

    def _others(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        """What the import system would find without this patch: those before it were asked."""
        finders = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(fullname, path, target) if find_spec is not None else None
            if spec is not None:
                return spec
        return None

    def _served(self, name: str, by: str, note: str) -> ModuleSpec:
        ours = import_module(by)
        return ModuleSpec(name, _Served(self.patch, ours, note), is_package=hasattr(ours, "__path__"))


class _Served(Loader):
    """Our module under another name."""

    def __init__(self, patch: "Patch", ours: ModuleType, note: str):
        self.patch, self.ours, self.note = patch, ours, note

    def exec_module(self, module: ModuleType) -> None:
        # What is in sys.modules after this is what is imported.
        self.patch.serve(module.__spec__.name, self.ours, self.note)


class _Empty(Loader):
    """A package that is not installed, above a module that is served."""

    def __init__(self, patch: "Patch"):
        self.patch = patch

    def exec_module(self, module: ModuleType) -> None:
        self.patch.serve(module.__spec__.name, module)


class _Inside(Loader):
    """The loader of an original, with something to do afterwards."""

    def __init__(self, finder: Finder, groups: list[Attributes], loader: Loader):
        self.finder, self.groups, self.loader = finder, groups, loader

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)  # get_source, get_resource_reader, ...

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name, patch = module.__spec__.name, self.finder.patch
        module.__spec__.loader = module.__loader__ = self.loader
        try:
            with importing_originals(name for group in self.groups for name in group.optional):
                self.loader.exec_module(module)
        except ImportError as error:
            if name not in self.finder.alone:
                raise
            ours = import_module(self.finder.alone[name].stand_in)
            patch.serve(name, ours, f"the original cannot be imported: {error}", logging.WARNING)
            return
        for group in self.groups:
            patch.replace_inside(name, module, group)


def _optional(fullname: str, spec: ModuleSpec | None) -> ModuleSpec:
    """The spec of a package that may be missing or broken: faiss and cupy without their CUDA libraries."""
    if spec is None:
        return ModuleSpec(fullname, _Placeholders(), is_package=True)
    if "." not in fullname and hasattr(spec.loader, "exec_module"):
        spec.loader = _MayFail(spec.loader)
    return spec


class _MayFail(Loader):
    """The loader of an optional package; a placeholder where the package raises."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__spec__.name
        module.__spec__.loader = module.__loader__ = self.loader
        try:
            self.loader.exec_module(module)
        except (*CALL_ERRORS, OSError):  # of a broken package, or of libraries that it does not find
            for part in [part for part in sys.modules if part.startswith(name + ".")]:
                del sys.modules[part]
            placeholder = _Placeholder(name)
            placeholder.__spec__, placeholder.__path__ = module.__spec__, []
            sys.modules[name] = placeholder  # what is there after this is what is imported


class _Placeholders(Loader):
    """A module of a package that is not installed, and that only what is replaced would need."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Placeholder(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return _Absent(f"{self.__name__}.{name}")


class _Absent:
    """Something of a package that is not installed."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self._name}.{name}")

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        package = self._name.partition(".")[0]
        missing = f"{package} is not installed or cannot be imported"
        raise ImportError(f"{self._name} was called, but {missing}; no drop-in stands for the caller")

    def __repr__(self) -> str:
        return f"<{self._name}, not installed>"


@contextlib.contextmanager
def importing_originals(optional: Iterator[str]) -> Iterator[None]:
    """Within it, and in this thread, those of the packages that are not installed are represented by placeholders."""
    before = getattr(_this_thread, "optional", frozenset())
    _this_thread.optional = before | frozenset(optional)
    try:
        yield
    finally:
        _this_thread.optional = before
        for name, module in list(sys.modules.items()):
            if isinstance(module, _Placeholder) and name.partition(".")[0] not in before:
                del sys.modules[name]


def _is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")
