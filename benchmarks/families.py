"""The benchmark files beside this one: adding `bench_<family>.py` adds a family."""

import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """Families that have a benchmark, in alphabetical order."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def load(family: str) -> ModuleType:
    """The file of a family; it has `cases(which, device) -> list[harness.Case]`, which is "quick" or "full"."""
    return importlib.import_module(f"bench_{family}")
