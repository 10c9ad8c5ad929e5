"""Numbers that papers state, and the settings in which they state them: `paper_numbers.json` beside this file."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Resize and window rules that differ between data sets; everything else is in the methods' own recipes.
_NACLIP_RULES = {"voc20": {"windows": "none"}, "voc21": {"windows": "none"}, "cityscapes": {"short_side": 560}}


@dataclasses.dataclass(frozen=True)
class Published:
    """One number of a paper.

    Attributes:
        value: in percent.
        source: the paper.
        metric: miou or biou.
    """

    value: float
    source: str
    metric: str


@functools.cache
def _document() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "paper_numbers.json").read_text(encoding="utf-8"))


def _fits(wanted: Any, got: Any, kind: str) -> bool:
    if isinstance(wanted, dict):
        wanted = wanted.get(kind, wanted.get("*"))
    return wanted == got


def published_numbers(method: str, kind: str, setting: Mapping[str, Any]) -> dict[str, Published]:
    """What papers report for a run.

    Args:
        method: of the run.
        kind: data set of the run.
        setting: what is known of the run; a number fits if all that its table states is so.

    Returns:
        By metric, the number of the first table that fits; nothing where the setting is no published one.
    """
    document, found = _document(), {}
    usual = {"style": "mmseg", "pamr": False}
    setting = {**usual, **setting}
    for table in document["tables"]:
        columns = document["columns"][table["columns"]]
        for row in table["rows"]:
            wanted = {**usual, **document["settings"].get(row.get("like"), {}), **row.get("setting", {})}
            if row["method"] != method or kind not in columns or table["metric"] in found:
                continue
            if all(_fits(value, setting.get(name), kind) for name, value in wanted.items()):
                value = row["values"][columns.index(kind)]
                found[table["metric"]] = Published(value, table["source"], table["metric"])
    return found


def published_rules(method: str, kind: str) -> dict[str, Any]:
    """Working size and windows that a method's paper takes for one data set alone; nothing where it has its usual ones.

    Args:
        method: of the run; of floss its base.
        kind: the data set.

    Returns:
        `short_side` and `windows`, those of them that differ.
    """
    return dict(_NACLIP_RULES.get(kind, {})) if method == "naclip" else {}
