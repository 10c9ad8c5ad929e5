"""Models that several methods load once, and what these see of the photo at hand, which is computed once."""

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class Shared:
    """What several methods have in common.

    Two methods whose arguments of a model are the same get the same object; features that one of them computes of a
    photo serve the others as long as it is that photo's turn.
    """

    def __init__(self):
        self._models: dict[Hashable, Any] = {}
        self._photo: Image | None = None
        self._seen: dict[Hashable, Any] = {}

    def model(self, load: Callable[..., T], *arguments: Hashable, **named: Hashable) -> T:
        """What `load` makes of the arguments; made once."""
        key = (load, arguments, tuple(sorted(named.items())))
        if key not in self._models:
            self._models[key] = load(*arguments, **named)
        return self._models[key]

    def seen(self, photo: "Image", key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of a photo; made once for each key until another photo comes."""
        if photo is not self._photo:
            self._photo, self._seen = photo, {}
        if key not in self._seen:
            self._seen[key] = make()
        return self._seen[key]
