"""Models that several methods load once, and what these see of the photo at hand, which is computed once."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Shared:
    """What several methods have in common.

    Two methods whose arguments of a model are the same get the same object; features that one of them computes of a
    photo serve the others until the next photo.
    """

    def __init__(self):
        self._models: dict[Hashable, Any] = {}
        self._seen: dict[Hashable, Any] = {}

    def model(self, load: Callable[..., T], *arguments: Hashable, **named: Hashable) -> T:
        """What `load` makes of the arguments; made once."""
        key = (load, arguments, tuple(sorted(named.items())))
        if key not in self._models:
            self._models[key] = load(*arguments, **named)
        return self._models[key]

    def next_photo(self) -> None:
        """Forgets what was seen: another photo comes."""
        self._seen = {}

    def seen(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of the photo at hand; made once for each key."""
        if key not in self._seen:
            self._seen[key] = make()
        return self._seen[key]
