"""Results of `ovs evaluate`: JSON with the exact counts, CSV, tables for people, and the sum of several shards."""

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .data import Dataset
from .errors import UserError
from .evaluation_runs import Run, published_of
from .evaluation_state import State, differing, shown
from .files import check_out_folder, write_together
from .metrics import Scores, SegmentationMetrics

if TYPE_CHECKING:
    from .evaluate import EvaluateOptions

RESULT, TABLE = "results.json", "results.csv"
READING, OVERHEAD = "reading, in the background", "all but the methods"
_FORMAT = 1
_TITLES = {"miou": "mIoU", "biou": "BIoU"}


@dataclasses.dataclass
class Outcome:
    """How an evaluation went.

    Attributes:
        document: what is in the file of the results.
        resumed: images that an earlier, interrupted run had counted.
        complete: whether there was nothing to do.
    """

    document: dict[str, Any]
    resumed: int = 0
    complete: bool = False


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)


def _scores_document(scores: Scores) -> dict[str, Any]:
    boundary = scores.boundary or [None] * len(scores.names)
    classes = [
        {"name": name, "pixels": pixels, "iou": _number(iou), "accuracy": _number(found), "biou": _number(edge)}
        for name, pixels, iou, found, edge in zip(
            scores.names, scores.pixels, scores.iou, scores.accuracies, boundary, strict=True
        )
    ]
    means = {"miou": scores.miou, "biou": scores.biou}
    means |= {"accuracy": scores.accuracy, "mean_accuracy": scores.mean_accuracy}
    return {**{name: _number(value) for name, value in means.items()}, "classes": classes}


def _portable(value: Any) -> Any:
    """Settings without the times of files, which differ between machines."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items() if key not in ("changed_ns", "threads")}
    return [_portable(part) for part in value] if isinstance(value, list) else value


def result_document(
    dataset: Dataset,
    runs: Sequence[Run],
    state: State,
    settings: dict[str, Any],
    failed: dict[str, str],
    options: "EvaluateOptions",
) -> dict[str, Any]:
    """The results, as JSON holds them.

    Args:
        dataset: that was evaluated.
        runs: the methods.
        state: with the counts.
        settings: of the run.
        failed: images that could not be used, and why.
        options: of the run.

    Returns:
        The document.
    """
    methods = []
    for run, counts in zip(runs, state.metrics, strict=True):
        published = published_of(run, dataset, options.style, options.ratio)
        about = {"label": run.label, "method": run.method, "windows": run.windows, "words": run.words}
        about["short_side"] = run.options.short_side if run.options is not None else None
        about["paper"] = {name: {"value": p.value, "source": p.source} for name, p in published.items()}
        spent = state.milliseconds.get(run.label, 0.0) / state.counted
        methods.append({**about, "ms_per_image": round(spent, 3), **_of_counts(counts)})
    return {
        "format_version": _FORMAT,
        "ovs_kernels": __version__,
        "kind": dataset.kind,
        "split": dataset.split,
        "images": state.counted,
        "images_of_split": len(dataset.items),
        "shards": [list(options.shard)],
        "missing": list(dataset.missing),
        "failed": dict(sorted(failed.items())),
        "ms_per_image": {
            name: round(state.milliseconds.get(name, 0.0) / state.counted, 3) for name in (READING, OVERHEAD)
        },
        "methods": methods,
        "settings": settings,
    }


def _of_counts(counts: SegmentationMetrics) -> dict[str, Any]:
    return {**_scores_document(counts.scores()), "counts": counts.to_json()}


def _json_text(document: dict[str, Any]) -> str:
    """Indented, but a row of a matrix on one line."""
    rows: list[str] = []

    def place(value: Any) -> Any:
        if isinstance(value, list) and value and all(type(part) is int for part in value):
            rows.append(json.dumps(value))
            return f"\0{len(rows) - 1}\0"
        if isinstance(value, dict):
            return {key: place(part) for key, part in value.items()}
        return [place(part) for part in value] if isinstance(value, list) else value

    parts = json.dumps(place(document), indent=1, ensure_ascii=False).split('"\\u0000')
    text = parts[0]
    for part in parts[1:]:
        number, _, rest = part.partition('\\u0000"')
        text += rows[int(number)] + rest
    return text + "\n"


def write_result(out: Path, document: dict[str, Any]) -> None:
    """Writes the JSON and the CSV, both or none.

    Raises:
        UserError: the disk is full, or the folder cannot be written; nothing is half-written.
    """

    def write_table(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(csv_rows(document))

    text = _json_text(document)
    outputs = {out / TABLE: write_table, out / RESULT: lambda path: path.write_text(text, encoding="utf-8")}
    try:
        write_together(outputs)
    except OSError as error:
        wanted = "room for the results"
        raise UserError(out, wanted, error.strerror or error, "nothing is half-written") from error


def load_result(path: Path, option: str) -> dict[str, Any]:
    """Reads results of `ovs evaluate`.

    Raises:
        UserError: the file cannot be read, or is something else.
    """
    wanted = "results of ovs evaluate"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format_version"] != _FORMAT:
            raise ValueError(f"format_version {document['format_version']}")
        for method in document["methods"]:
            counts = SegmentationMetrics.from_json(method["counts"])
            if counts.images != document["images"] or not isinstance(method["label"], str):
                raise ValueError("counts of another number of images")
        for name, kind in {"settings": dict, "shards": list, "failed": dict, "missing": list}.items():
            if not isinstance(document[name], kind):
                raise ValueError(f"{name} is no {kind.__name__}")
    except OSError as error:
        raise UserError(option, wanted, f"{path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(option, wanted, f"{path}, which is damaged or something else ('{error}')") from None
    return document


def merge_results(files: Sequence[Path], out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Adds the results of shards up; exact, so the order does not matter and all shards make the whole.

    Args:
        files: `results.json` of each, or the folders that have one.
        out: folder of the results.
        overwrite: whether there may be results already.

    Returns:
        The document that was written.

    Raises:
        UserError: a file is damaged, two do not fit together, or `out` has results.
    """
    if len(files) < 2:
        raise UserError("--merge", "at least two results", len(files))
    paths = [path / RESULT if path.is_dir() else path for path in files]
    target = out / RESULT
    if target.exists() and (not overwrite or target.resolve() in {path.resolve() for path in paths}):
        raise UserError("--out", "a folder without results", f"{target}, which exists", "--overwrite replaces it")
    check_out_folder(out)
    first, *others = (load_result(path, "--merge") for path in paths)
    shards: dict[tuple[int, int], Path] = {}
    for path, document in zip(paths, (first, *others), strict=True):
        mine, theirs = (dict(_portable(d["settings"]), shard=None) for d in (first, document))
        different = differing(mine, theirs)
        if different:
            name, before, now = different
            raise UserError("--merge", f"the {name} of {paths[0]}: {shown(before)}", f"{shown(now)} in {path}")
        for part in map(tuple, document["shards"]):
            if part in shards or any(part[1] != known[1] for known in shards):
                known = shards.get(part, paths[0])
                raise UserError(
                    "--merge", "different shards of one run", f"{part[0]}/{part[1]} in {path} and in {known}"
                )
            shards[part] = path
    return _merged([first, *others], sorted(shards), out)


def _merged(documents: Sequence[dict[str, Any]], shards: list[tuple[int, int]], out: Path) -> dict[str, Any]:
    images = sum(document["images"] for document in documents)
    methods = []
    for number, first in enumerate(documents[0]["methods"]):
        parts = [document["methods"][number] for document in documents]
        counts = SegmentationMetrics.from_json(first["counts"])
        for part in parts[1:]:
            counts = counts + SegmentationMetrics.from_json(part["counts"])
        spent = sum(p["ms_per_image"] * d["images"] for p, d in zip(parts, documents, strict=True))
        methods.append({**first, "ms_per_image": round(spent / images, 3), **_of_counts(counts)})
    failed = {name: reason for document in documents for name, reason in document["failed"].items()}
    spent = {
        name: round(sum(d["ms_per_image"][name] * d["images"] for d in documents) / images, 3)
        for name in documents[0]["ms_per_image"]
    }
    changed = {"images": images, "shards": [list(shard) for shard in shards], "failed": dict(sorted(failed.items()))}
    document = {**documents[0], **changed, "ms_per_image": spent, "methods": methods}
    document["settings"] = dict(document["settings"], shard=document["shards"])
    write_result(out, document)
    return document


def partial_reason(document: dict[str, Any]) -> str | None:
    """Why results are not of the whole split; None if they are."""
    shards = {tuple(shard) for shard in document["shards"]}
    count = next(iter(shards))[1]
    if len(shards) < count:
        return f"{len(shards)} of {count} shards"
    if document["images"] < document["images_of_split"]:
        return f"{document['images']} of {document['images_of_split']} images"
    return f"{len(document['missing'])} files without a partner" if document["missing"] else None


def csv_rows(document: dict[str, Any]) -> list[list[Any]]:
    """The table of the results: a line per class, then the means and the papers' numbers."""
    methods = document["methods"]
    metrics = [name for name in ("iou", "accuracy", "biou") if name != "biou" or methods[0]["biou"] is not None]
    rows: list[list[Any]] = [["class", "pixels", *(f"{m['label']} {name}" for m in methods for name in metrics)]]
    for number, entry in enumerate(methods[0]["classes"]):
        values = [m["classes"][number][name] for m in methods for name in metrics]
        rows.append([entry["name"], entry["pixels"], *values])
    means = {"iou": "miou", "accuracy": "mean_accuracy", "biou": "biou"}
    rows.append(["mean", "", *(m[means[name]] for m in methods for name in metrics)])
    paper = [m["paper"].get(means[name], {}).get("value") for m in methods for name in metrics]
    if any(value is not None for value in paper):
        rows.append(["paper", "", *paper])
    return rows


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def class_table(document: dict[str, Any]) -> list[list[str]]:
    """A row per class for people, with the titles above: IoU, and Boundary IoU where it was counted."""
    methods = document["methods"]
    names = ["iou", *(["biou"] if methods[0]["biou"] is not None else [])]
    title = {"iou": "IoU", "biou": "BIoU"}
    total = sum(entry["pixels"] for entry in methods[0]["classes"]) or 1
    rows = [["class", "% pixels", *(f"{m['label']}\n{title[name]}" for m in methods for name in names)]]
    for number, entry in enumerate(methods[0]["classes"]):
        values = [_shown(m["classes"][number][name]) for m in methods for name in names]
        rows.append([entry["name"], f"{100 * entry['pixels'] / total:.1f}", *values])
    return rows


def summary_table(document: dict[str, Any]) -> list[list[str]]:
    """A row per method for people, with the titles above; the paper's number beside ours where there is one."""
    methods = document["methods"]
    metrics = [name for name in _TITLES if methods[0][name] is not None or name == "miou"]
    papers = {name: any(name in m["paper"] for m in methods) for name in metrics}
    titles = ["method"]
    for name in metrics:
        titles += [_TITLES[name], *(["paper"] if papers[name] else [])]
    rows = [[*titles, "aAcc", "mAcc", "ms/image"]]
    for method in methods:
        row = [method["label"]]
        for name in metrics:
            row.append(_shown(method[name]))
            if papers[name]:
                value = method["paper"].get(name, {}).get("value")
                row.append("-" if value is None else f"{value:.1f}")
        rows.append(
            [*row, _shown(method["accuracy"]), _shown(method["mean_accuracy"]), f"{method['ms_per_image']:.0f}"]
        )
    return rows


def sources(document: dict[str, Any]) -> list[str]:
    """The papers whose numbers are shown."""
    return list(dict.fromkeys(p["source"] for method in document["methods"] for p in method["paper"].values()))
