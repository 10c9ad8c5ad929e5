"""Rankings of prompt templates: what `ovs rank-templates` writes and FLOSS reads, as JSON that people can read too."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovs_kernels import TemplateScores

from . import __version__
from .errors import UserError
from .files import write_together
from .methods.recipes import RECIPES

FORMAT, FORMAT_VERSION = "ovs template ranking", 1
METRICS = ("entropy", "probability", "mano")
_KEYS_PER_LINE = 8
_FAILED = ("image", "reason", "key")
# FLOSS's published files: their names of the base models, and query words of NACLIP for classes of PASCAL VOC 20.
_PUBLISHED_BASES = {"maskclip": "maskclip", "clipdinoiser": "clip-dinoiser", "naclip": "naclip"}
_PUBLISHED_TEMPLATES = 80
_VOC_WORDS = {
    "boat": ("ship",),
    "diningtable": ("table",),
    "person": tuple(f"person in {cloth}" for cloth in ("shirt", "jeans", "dress", "sweater", "skirt", "jacket")),
    "tvmonitor": ("television monitor", "tv monitor", "monitor", "television", "screen"),
}
_ABSENT = object()  # a setting that one side does not have, which is not null
_log = logging.getLogger("ovs_methods")
_noted: set[Path] = set()


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one template and one class.

    Attributes:
        template: number of the template, from 0.
        entropy: mean entropy of the places that the template calls this class, in nats; low is good.
        percentage: share of all places that it calls this class.
        probability: mean probability of the class at those places, or None if the file does not tell.
        mano: its MaNo, or None.
    """

    template: int
    entropy: float
    percentage: float
    probability: float | None = None
    mano: float | None = None


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Which templates are experts for which class, and everything that this depends on.

    Attributes:
        base: method whose features and head were used: maskclip, naclip, clip-dinoiser or proxyclip.
        identity: of the backbone (model, fingerprint of the weights, features, guide); None if the file does not
            tell, as those that FLOSS has published.
        templates: [M] prompts with `{}` in the place of the name.
        names: the words of each of the K classes, the class itself being called by the first.
        images: number of images.
        mode: what was counted: "pixel_exact" or "patch".
        entries: for each class the templates that predict it at all, best first.
        scores: the sums behind it, which merge exactly; None for a published file.
        dataset: name of the data set, or None.
        metric: what `entries` are sorted by.
        windows: as `--windows` takes it, or None if the file does not tell.
        short_side: of the working resolution, or None.
        failed: images that could not be used: file name, reason, and fingerprint (empty if it could not be read at
            all), sorted.
        keys: [images] fingerprints of the images (name and content), sorted; no image is merged twice.
        version: of the package that made it.
        source: the file it comes from, for texts.
    """

    base: str
    identity: dict[str, Any] | None
    templates: list[str]
    names: dict[str, list[str]]
    images: int
    mode: str
    entries: dict[str, list[Entry]]
    scores: TemplateScores | None = None
    dataset: str | None = None
    metric: str = "entropy"
    windows: str | None = None
    short_side: int | None = None
    failed: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    keys: list[str] = dataclasses.field(default_factory=list)
    version: str = __version__
    source: str = dataclasses.field(default="", compare=False)

    @classmethod
    def of_scores(
        cls,
        scores: TemplateScores,
        settings: Mapping[str, Any],
        *,
        failed: Sequence[tuple[str, str, str]] = (),
        keys: Sequence[str] = (),
    ) -> "Ranking":
        """The ranking that sums amount to.

        Args:
            scores: of M templates and K classes.
            settings: as `settings` returns them.
            failed: images that could not be used, in any order.
            keys: fingerprints of the images that were, in any order.

        Returns:
            The ranking.
        """
        metric, names = settings["metric"], settings["names"]
        columns = {"entropy": scores.mean_entropy, "probability": scores.mean_probability}
        if metric == "mano":
            columns["mano"] = scores.mano
        columns = {key: value.tolist() for key, value in columns.items()}
        share = scores.percentage.tolist()
        ranked = scores.ranking(metric)
        entries = {
            name: [
                Entry(m, percentage=share[m][k], **{key: value[m][k] for key, value in columns.items()})
                for m in ranked[k]
            ]
            for k, name in enumerate(names)
        }
        known = {key: value for key, value in settings.items() if key != "format_version"}
        lists = {"failed": sorted(map(tuple, failed)), "keys": sorted(keys)}
        return cls(images=len(keys), entries=entries, scores=scores, **lists, **known)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the numbers but the images, as JSON can hold it."""
        fields = ("version", "base", "identity", "dataset", "mode", "metric", "windows", "short_side")
        given = {field: getattr(self, field) for field in fields}
        return {"format_version": FORMAT_VERSION, **given, "names": self.names, "templates": self.templates}

    def __add__(self, other: "Ranking") -> "Ranking":
        """Both rankings' images in one ranking; exact, in any order.

        Raises:
            UserError: the two are of different settings, share an image, or one has no sums.
        """
        if not isinstance(other, Ranking):
            return NotImplemented
        for ranking in (self, other):
            if ranking.scores is None:
                raise UserError("--merge", "rankings with sums", f"{ranking.source}, which FLOSS has published")
        different = difference(self.settings, other.settings)
        if different:
            what, mine, theirs = different
            wanted = f"rankings that differ in their images only ({what} of {self.source}: {mine})"
            raise UserError("--merge", wanted, f"{what} of {other.source}: {theirs}")
        shared = sorted(set(self.keys) & set(other.keys))
        if shared:
            files = f"{self.source} and {other.source}"
            advice = "a photo of the same name and content belongs into one shard only"
            raise UserError("--merge", "rankings without a common image", f"{len(shared)} in both of {files}", advice)
        source = " + ".join(filter(None, (self.source, other.source)))
        lists = {"failed": [*self.failed, *other.failed], "keys": [*self.keys, *other.keys]}
        merged = Ranking.of_scores(self.scores + other.scores, self.settings, **lists)
        return dataclasses.replace(merged, source=source)

    def check(
        self,
        identity: Mapping[str, Any],
        base: str,
        templates: Sequence[str],
        names: Sequence[str] | Mapping[str, Sequence[str]],
        flag: str = "--experts",
    ) -> None:
        """Makes sure that the ranking is about what it is going to be used for.

        Args:
            identity: of the backbone.
            base: the method whose features and head are used.
            templates: the prompts that its numbers refer to.
            names: the classes, or the words of each.
            flag: the option that it comes from.

        Raises:
            UserError: it is about another base, model, template list, or lacks a class. The text names both.
        """
        file = self.source or "a ranking"
        if base != self.base:
            raise UserError(flag, f"a ranking for {base}", f"{file}, made for {self.base}")
        if self.identity is not None:
            model = portable(identity)
            different = difference({"identity": model}, {"identity": self.identity})
            if different:
                what, wanted, got = different
                wanted = f"a ranking made with {model.get('model')} ({what}: {wanted})"
                raise UserError(flag, wanted, f"{file}, made with {self.identity.get('model')} ({what}: {got})")
        if list(templates) != self.templates:
            what, wanted, got = _different_template(list(templates), self.templates)
            raise UserError(flag, f"a ranking of the same templates ({what}: {wanted})", f"{file} ({what}: {got})")
        for name in names:
            self.class_of(name, flag)
            if isinstance(names, Mapping) and self.identity is not None and list(names[name]) != self.names[name]:
                wanted, got = "; ".join(names[name]), "; ".join(self.names[name])
                raise UserError(flag, f"a ranking of the class '{wanted}'", f"{file}, where it is '{got}'")
        used = {self.class_of(name, flag) for name in names}
        unused = [name for name in self.entries if name not in used]
        if unused:
            also = _listed(unused)
            _log.warning("%s also ranks %s: classes that are not asked for took part in its entropies", file, also)

    def class_of(self, name: str, flag: str = "--experts") -> str:
        """What the file calls a class.

        Published files write some names without spaces, and classes of PASCAL VOC otherwise than NACLIP's queries.

        Raises:
            UserError: it has no such class.
        """
        if name in self.entries:
            return name
        if self.identity is None:
            squeezed = {_squeezed(known): known for known in self.entries}
            voc = _VOC_WORDS if (self.base, self.dataset) == ("naclip", "pascalvoc20") else {}
            for known, words in voc.items():
                if known in self.entries:
                    squeezed.update({_squeezed(word): known for word in words})
            if _squeezed(name) in squeezed:
                return squeezed[_squeezed(name)]
        raise UserError(flag, f"a ranking of the class '{name}'", f"{self.source or 'one'} of {_listed(self.entries)}")

    def experts(self, names: Sequence[str], top: int = 4) -> list[list[int] | None]:
        """The best templates of each class.

        Args:
            names: of classes.
            top: templates of a class at most.

        Returns:
            For each name the numbers of its templates, best first; None where no template predicts the class.

        Raises:
            UserError: the ranking lacks a class.
        """
        chosen = [self.entries[self.class_of(name)][:top] for name in names]
        return [[entry.template for entry in entries] or None for entries in chosen]


def difference(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first setting that differs: what it is, and the two values; None if all are equal."""
    for key in dict.fromkeys([*wanted, *got]):
        one, other = wanted.get(key, _ABSENT), got.get(key, _ABSENT)
        if _ABSENT in (one, other):
            return key.replace("_", " "), _short(one), _short(other)
        if key == "names" and list(one) != list(other):
            return "classes", _short(", ".join(one)), _short(", ".join(other))
        if key == "names" and one != other:
            name = next(name for name in one if one[name] != other[name])
            return f"words of class '{name}'", "; ".join(one[name]), "; ".join(other[name])
        if key == "templates" and one != other:
            return _different_template(one, other)
        if key == "identity" and isinstance(one, Mapping) and isinstance(other, Mapping) and one != other:
            part, mine, theirs = difference(one, other)
            return f"model's {part}", mine, theirs
        if one != other:
            return key.replace("_", " "), _short(one), _short(other)
    return None


def _different_template(wanted: Sequence[str], got: Sequence[str]) -> tuple[str, str, str]:
    for index, (one, other) in enumerate(zip(wanted, got, strict=False)):
        if one != other:
            return f"template {index}", f"'{one}'", f"'{other}'"
    return "number of templates", str(len(wanted)), str(len(got))


def _listed(names: Sequence[str] | Mapping[str, Any], most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def portable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's identity as JSON brings it back, with the last part of a local folder only: the weights tell."""
    kept = json.loads(json.dumps(identity))
    model = kept.get("model")
    if isinstance(model, str) and model.startswith("local-dir:"):
        kept["model"] = f"local-dir:{Path(model[10:]).resolve().name}"
    return kept


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


def _squeezed(name: str) -> str:
    return "".join(name.lower().split())


def save_ranking(path: Path, ranking: Ranking) -> None:
    """Writes a ranking completely or not at all; equal rankings are equal files, byte for byte.

    Args:
        path: the file.
        ranking: with its sums.
    """
    text = _text(ranking)
    write_together({path: lambda temporary: temporary.write_text(text, encoding="utf-8")})


def _text(ranking: Ranking) -> str:
    """The file's text: one line for each setting, template, and entry."""
    settings, scores = ranking.settings, ranking.scores.to_dict()
    tables = {"counts": scores.pop("counts"), **scores.pop("sums_2e-32")}
    parts = {
        "format": _json(FORMAT),
        "format_version": _json(settings.pop("format_version")),
        "made_by": _json(f"ovs {settings.pop('version')}"),
        "base": _json(settings.pop("base")),
        "model": _json(settings.pop("identity")),
    }
    names, templates = settings.pop("names"), settings.pop("templates")
    parts |= {key: _json(value) for key, value in settings.items()}
    parts |= {
        "images": str(ranking.images),
        "total_pixels" if ranking.mode == "pixel_exact" else "total_patches": str(ranking.scores.total),
        "names": _lines("{}", [f"{_json(name)}: {_json(words)}" for name, words in names.items()]),
        "templates": _lines("[]", map(_json, templates)),
        "classes": _lines("{}", [_class_text(ranking, name) for name in names]),
        "failed": _lines("[]", [_json(dict(zip(_FAILED, entry, strict=True))) for entry in ranking.failed]),
        "sums": _lines("{}", [f"{_json(key)}: {_lines('[]', map(_json, rows), 2)}" for key, rows in tables.items()]),
    }
    keys = [_json(key) for key in ranking.keys]
    rows = [", ".join(keys[i : i + _KEYS_PER_LINE]) for i in range(0, len(keys), _KEYS_PER_LINE)]
    parts["keys"] = _lines("[]", rows)
    return _lines("{}", [f"{_json(key)}: {text}" for key, text in parts.items()], 0) + "\n"


def _class_text(ranking: Ranking, name: str) -> str:
    rows = []
    for rank, entry in enumerate(ranking.entries[name], 1):
        given = {key: value for key, value in dataclasses.asdict(entry).items() if value is not None}
        rows.append(_json({"rank": rank, **given, "text": ranking.templates[entry.template]}))
    return f"{_json(name)}: {_lines('[]', rows, 2)}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _lines(brackets: str, items: Any, depth: int = 1) -> str:
    """Items one a line between brackets."""
    items, indent = list(items), "  " * (depth + 1)
    if not items:
        return brackets
    body = f",\n{indent}".join(items)
    return f"{brackets[0]}\n{indent}{body}\n{indent[2:]}{brackets[1]}"


class _Damaged(Exception):
    """Something in a ranking is not what it has to be; the text says what."""


def load_ranking(path: Path | str, flag: str = "--experts") -> Ranking:
    """Reads a ranking: ours, or one that FLOSS has published.

    A published one says neither which templates nor which weights it was made with. Its numbers are taken for those of
    the 80 templates of open_clip; that its weights cannot be checked is said once, in the log.

    Args:
        path: the file.
        flag: the option that it comes from.

    Returns:
        The ranking.

    Raises:
        UserError: no such file, no ranking, or a damaged one, or one of another version of the format.
        MissingDependency: open_clip_torch is not installed, for a published one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(flag, "a ranking of ovs rank-templates or of FLOSS", f"no file at {path}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(flag, "a ranking in JSON", f"{path} ('{str(error)[:120]}')") from None
    try:
        if isinstance(document, dict) and "format" not in document and "classes" in document:
            return _published(document, path)
        return _ours(document, path, flag)
    except _Damaged as error:
        raise UserError(flag, "a complete ranking", f"{path}, in which {error}") from None


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise _Damaged(text)


def _field(document: Any, key: str, kind: Any, where: str = "") -> Any:
    """A value of a kind; booleans are no numbers, and numbers are finite."""
    _need(isinstance(document, dict) and key in document, f"{where}'{key}' is missing")
    value = document[key]
    fits = isinstance(value, kind) and (not isinstance(value, bool) or kind is bool)
    _need(fits and not (isinstance(value, float) and not math.isfinite(value)), f"{where}'{key}' is {_short(value)}")
    return value


def _ours(document: Any, path: Path, flag: str) -> Ranking:
    _need(isinstance(document, dict) and document.get("format") == FORMAT, f"'format' is not '{FORMAT}'")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        wanted = f"a ranking of version {FORMAT_VERSION} of the format"
        raise UserError(flag, wanted, f"{path} of version {_short(version)}", f"made by {document.get('made_by')}")
    maybe_text, maybe_integer = (str, type(None)), (int, type(None))
    names = _field(document, "names", dict)
    for name, words in names.items():
        _need(_texts(words) and bool(words), f"the words of '{name}' are {_short(words)}")
    templates = _field(document, "templates", list)
    _need(bool(names) and bool(templates) and _texts(templates), "'names' or 'templates' are no lists of texts")
    classes = _field(document, "classes", dict)
    _need(set(classes) == set(names), "'classes' and 'names' are not the same")
    failed = _field(document, "failed", list)
    failed = [tuple(_field(entry, key, str, "'failed': ") for key in _FAILED) for entry in failed]
    keys = _field(document, "keys", list)
    images = _field(document, "images", int)
    _need(_texts(keys) and len(keys) == images, f"'keys' are not those of {images} images")
    base = _field(document, "base", str)
    _need(base in RECIPES, f"'base' is '{_short(base)}', none of {', '.join(RECIPES)}")
    mode, metric = _field(document, "mode", str), _field(document, "metric", str)
    _need(mode in ("pixel_exact", "patch") and metric in METRICS, f"'mode' is {mode} and 'metric' {metric}")
    total = _field(document, "total_pixels" if mode == "pixel_exact" else "total_patches", int)
    scores = _scores(_field(document, "sums", dict), total, (len(templates), len(names)), metric)
    entries = {name: _entries(classes[name], name, len(templates)) for name in names}
    for k, (name, share) in enumerate(zip(names, scores.percentage.T.tolist(), strict=True)):
        same = all(math.isclose(entry.percentage, share[entry.template], rel_tol=1e-9) for entry in entries[name])
        _need(same, f"the percentages of class '{name}' are not those of column {k} of the counts")
    return Ranking(
        base=base,
        identity=_field(document, "model", dict),
        templates=templates,
        names=names,
        images=images,
        mode=mode,
        entries=entries,
        scores=scores,
        dataset=_field(document, "dataset", maybe_text),
        metric=metric,
        windows=_field(document, "windows", maybe_text),
        short_side=_field(document, "short_side", maybe_integer),
        failed=failed,
        keys=keys,
        version=_field(document, "made_by", str).removeprefix("ovs "),
        source=str(path),
    )


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _entries(rows: Any, name: str, templates: int) -> list[Entry]:
    _need(isinstance(rows, list), f"class '{name}' is {_short(rows)}")
    where, found, number = f"class '{name}': ", [], (int, float)
    for row in rows:
        template = _field(row, "template", int, where)
        _need(0 <= template < templates, f"{where}template {template} is none of {templates}")
        others = {key: _field(row, key, number, where) for key in ("probability", "mano") if key in row}
        entropy, share = (_field(row, key, number, where) for key in ("entropy", "percentage"))
        found.append(Entry(template, entropy, share, **others))
    _need(len({entry.template for entry in found}) == len(found), f"{where}a template occurs twice")
    return found


def _scores(tables: dict[str, Any], total: int, shape: tuple[int, int], metric: str) -> TemplateScores:
    """The sums, each a table of integers of the shape [M, K]."""
    for key in dict.fromkeys(("counts", *tables)):
        rows = _field(tables, key, list, "'sums': ")
        right = len(rows) == shape[0] and all(isinstance(row, list) and len(row) == shape[1] for row in rows)
        integers = right and all(type(value) is int and 0 <= value < 2**95 for row in rows for value in row)
        _need(integers, f"'sums': '{key}' is no table of {shape[0]} x {shape[1]} integers")
    sums = {key: value for key, value in tables.items() if key != "counts"}
    values = {"version": 1, "total": total, "counts": tables["counts"], "sums_2e-32": sums}
    try:
        scores = TemplateScores.from_dict(values)
        if metric == "mano":
            scores.sum_of("divergence")
    except (ValueError, OverflowError, RuntimeError) as error:
        raise _Damaged(f"the sums are wrong ({error})") from None
    _need(bool((scores.counts.sum(1) <= total).all()), f"more places are counted than the {total} in all")
    return scores


def _published(document: dict[str, Any], path: Path) -> Ranking:
    from .vocabulary.templates import load_templates

    model = _field(document, "model", str)
    _need(model in _PUBLISHED_BASES, f"'model' is '{model}', none of {', '.join(_PUBLISHED_BASES)}")
    entries = {}
    for name, ranked in _field(document, "classes", dict).items():
        where, found = f"class '{name}': ", []
        for row in _field(ranked, "entropy_ranking", list, where):
            template = _field(row, "template_id", int, where)
            _need(0 <= template < _PUBLISHED_TEMPLATES, f"{where}template {template} is none of {_PUBLISHED_TEMPLATES}")
            entropy, share = (_field(row, key, (int, float), where) for key in ("entropy", "pixel_percentage"))
            if share > 0:
                found.append(Entry(template, float(entropy), float(share)))
        _need(len({entry.template for entry in found}) == len(found), f"{where}a template occurs twice")
        entries[name] = sorted(found, key=lambda entry: entry.entropy)
    _need(bool(entries), "'classes' is empty")
    if path.resolve() not in _noted:  # a run may read the file more than once
        _noted.add(path.resolve())
        _log.warning("%s does not name the weights it was made with: they cannot be checked", path)
    return Ranking(
        base=_PUBLISHED_BASES[model],
        identity=None,
        templates=load_templates(),
        names={name: [name] for name in entries},
        images=0,
        mode="pixel_exact",
        entries=entries,
        dataset=_field(document, "dataset", str),
        version=f"published by FLOSS for {model}",
        source=str(path),
    )
