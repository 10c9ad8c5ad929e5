"""A method's constants: a preset by name, with what the user changed."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import UserError

P = TypeVar("P")


def named_preset(presets: Mapping[str, P], name: str, automatic: str, changed: Mapping[str, Any], methods: str) -> P:
    """The preset of this name with some fields replaced.

    Args:
        presets: dataclasses by name.
        name: one of them, or auto.
        automatic: what auto means.
        changed: fields that the user gave by themselves; None where not.
        methods: whose presets these are, for the error text.

    Returns:
        The constants, unchecked.

    Raises:
        UserError: there is no such preset.
    """
    if name == "auto":
        name = automatic
    if name not in presets:
        raise UserError("--preset", f"auto, {' or '.join(presets)} {methods}", name)
    return dataclasses.replace(presets[name], **{key: value for key, value in changed.items() if value is not None})
