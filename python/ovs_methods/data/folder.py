"""A plain folder of images, masks and a class list, as MESS's data sets are."""

import dataclasses
import json
import re
from pathlib import Path

from ..errors import UserError
from ..files import IMAGE_SUFFIXES
from .classes import check_names
from .masks import MaskRule

IMAGE_FOLDERS = ("images", "images_detectron2/test", "images_detectron2/val", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "annotations_detectron2/test", "annotations_detectron2/val", "annotations", "labels")
CLASS_LISTS = ("classes.txt", "classes.json", "class_names.txt")
IGNORED = "-"  # name of a line whose pixels do not count
_LABELME = "_background_"  # what labelme calls it
_COLOR = re.compile(r"(?:#([0-9a-fA-F]{6})|(\d{1,3})[ ,]+(\d{1,3})[ ,]+(\d{1,3}))[\s:,]+(.+)")


@dataclasses.dataclass(frozen=True)
class ClassList:
    """What a file says about the classes of a folder.

    Attributes:
        names: [C] of the classes.
        words: [C] all names of each class, the first of which it is called by.
        values: class of each value in a mask, -1 for those that do not count.
        colors: class of each colour, None where the file has none.
    """

    names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    values: dict[int, int]
    colors: dict[tuple[int, int, int], int] | None


def _parse_line(line: str, where: str) -> tuple[list[str], tuple[int, int, int] | None]:
    match = _COLOR.fullmatch(line)
    color = None
    if match:
        line = match[5].strip()
        color = tuple(bytes.fromhex(match[1])) if match[1] else tuple(int(match[part]) for part in (2, 3, 4))
        if max(color) > 255:
            raise UserError(where, "a colour of three numbers up to 255", ", ".join(map(str, color)))
    words = [" ".join(word.split()) for word in re.split(r"[;|,]", line)]
    words = ["background" if word == _LABELME else word for word in words]
    if not all(words):
        raise UserError(where, "a name, and other names behind semicolons", f"'{line}'")
    return words, color


def _entries_of_json(text: str, path: Path) -> list[tuple[list[str], tuple[int, int, int] | None, int | None]]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UserError(path, "a class list in JSON", f"'{error}'") from None
    if isinstance(document, dict):
        document = document.get("classes", document)
    if isinstance(document, dict) and all(str(key).lstrip("-").isdecimal() for key in document):
        document = [{"id": int(key), "name": name} for key, name in document.items()]
    if not isinstance(document, list):
        raise UserError(path, 'a list of names, or of {"id", "name", "color"}', type(document).__name__)
    entries = []
    for number, entry in enumerate(document):
        where = f"{path}: class {number}"
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UserError(where, 'a name, or {"id", "name", "color"}', json.dumps(entry)[:60])
        words, _ = _parse_line(entry["name"], where)
        color, value = entry.get("color"), entry.get("id")
        if color is not None:
            fits = isinstance(color, list) and len(color) == 3 and all(type(c) is int and 0 <= c < 256 for c in color)
            if not fits:
                raise UserError(where, "a color of three numbers up to 255", json.dumps(color)[:60])
            color = tuple(color)
        if value is not None and (type(value) is not int or not 0 <= value < 65536):
            raise UserError(where, "an id from 0 to 65535", json.dumps(value)[:60])
        entries.append((words, color, value))
    return entries


def _entries_of_text(text: str, path: Path) -> list[tuple[list[str], tuple[int, int, int] | None, int | None]]:
    lines = text.rstrip().splitlines()
    return [(*_parse_line(line.strip(), f"{path}: line {number}"), None) for number, line in enumerate(lines, 1)]


def read_class_list(path: Path, reduce_zero: bool = False, ignored: tuple[int, ...] = (255,)) -> ClassList:
    """Reads the classes of a folder.

    Args:
        path: text with a class per line, in order of the labels, or JSON. A line is a name, other names of the class
            behind semicolons or commas, and before it, if masks are coded by colours, `#rrggbb` or `r g b`. The name
            `-` is of labels that do not count. JSON: a list of names or of {"id", "name", "color"}, or {"0": "name"}.
        reduce_zero: label 0 does not count and the first class has label 1, as in ADE20K.
        ignored: labels that do not count.

    Returns:
        The classes.

    Raises:
        UserError: the file cannot be read, has no class, an empty line between others, a name, label or colour twice,
            or a class with the label 255 or 0 that `ignored` or `reduce_zero` leaves out.
    """
    if not path.is_file():
        raise UserError("--class-list", "a file with a class per line", f"nothing at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, "a text file in UTF-8", f"'{error}'") from None
    entries = _entries_of_json(text, path) if path.suffix.lower() == ".json" else _entries_of_text(text, path)
    names = [words[0] for words, _, _ in entries if words != [IGNORED]]
    check_names(names, str(path))
    check_names([word for words, _, _ in entries if words != [IGNORED] for word in words], str(path))
    values: dict[int, int] = dict.fromkeys((*((0,) if reduce_zero else ()), *ignored), -1)
    colors: dict[tuple[int, int, int], int] = {}
    given, index = set(), 0
    for number, (words, color, value) in enumerate(entries):
        value = number + reduce_zero if value is None else value
        if value in given:
            raise UserError(path, "every label once", f"{value} twice")
        given.add(value)
        meaning = -1 if words == [IGNORED] else index
        index += meaning >= 0
        if meaning >= 0 and reduce_zero and value == 0:
            raise UserError("--reduce-zero-label", "no class with the label 0", f"'{words[0]}' in {path}")
        if meaning >= 0 and value in ignored and value == 255:  # else its pixels would be left out unseen
            advice = "--ignore-label 65535 counts it, the name - leaves it out"
            raise UserError(path, "no class with the label 255, which does not count", f"'{words[0]}'", advice)
        if value not in ignored or meaning < 0:
            values[value] = meaning
        if color is not None:
            if color in colors:
                raise UserError(path, "every colour once", f"#{bytes(color).hex()} twice")
            colors[color] = meaning
    missing = [words[0] for words, color, _ in entries if color is None]
    if colors and any(name != IGNORED for name in missing):
        raise UserError(path, "a colour for every class, or for none", f"none for '{missing[0]}'")
    kept = tuple(tuple(words) for words, _, _ in entries if words != [IGNORED])
    return ClassList(tuple(names), kept, values, colors or None)


def find_below(root: Path, given: str | None, usual: tuple[str, ...], option: str, what: str) -> Path:
    """A file or folder of a data set: the one that the user names, relative to the root, or a usual one that is there.

    Raises:
        UserError: it is not there.
    """
    if given is not None:
        path = root / given
        if not path.exists():
            raise UserError(option, what, f"nothing at {path}")
        return path
    for name in usual:
        if (root / name).exists():
            return root / name
    raise UserError(option, f"{what} in {root}", "none", f"looked for {', '.join(usual)}")


def files_below(folder: Path, suffix: str = "", option: str = "--dataset") -> dict[str, Path]:
    """Image files of a folder and its subfolders, by their relative path without `suffix` or the file's ending.

    Raises:
        UserError: two files have the same name but for the ending.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        if suffix and not name.endswith(suffix):
            continue
        key = name[: -len(suffix)] if suffix else name[: -len(path.suffix)]
        if key in found:
            raise UserError(option, "one file of a name", f"{found[key]} and {path}")
        found[key] = path
    return found


def folder_rule(classes: ClassList) -> MaskRule:
    """How masks of a folder become targets."""
    return MaskRule(len(classes.names), classes.values, classes.colors)
