"""A benchmark document as text: Markdown tables that read well in a terminal too."""

import json
import os
import tempfile
from pathlib import Path

OURS_LABEL = {"pytorch": "best PyTorch", "published": "published procedure", "reference": "reference"}


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _row(entry: dict) -> list[str]:
    check = entry.get("check", {})
    labels = f"{check['equal_labels']:.4%}" if check else ""
    error = f"{check['relative_error']:.1e}" if check.get("relative_error") is not None else ""
    if "median_s" not in entry:
        return [entry["name"], labels, error, f"{entry['status']}: {entry['reason']}", "", "", "", ""]
    spread = f"{_time(entry['q1_s'])} - {_time(entry['q3_s'])}" if entry["rounds"] > 1 else ""
    ratio = f"{entry['ratio']:.2f}x" if entry["ratio"] is not None else ""
    extra = f"{entry['extra_mb']:.0f}" if "extra_mb" in entry else ""
    return [entry["name"], labels, error, _time(entry["median_s"]), spread, str(entry["rounds"]), ratio, extra]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    return [line(header), line(["-" * width for width in widths]), *map(line, rows)]


def case_text(record: dict) -> str:
    """Heading, table and summary of one case."""
    header = ["implementation", "equal labels", "rel. error", "median", "quartiles", "rounds", "ratio", "extra MB"]
    lines = [f"### {record['family']}: {record['name']}", ""]
    lines += _table(header, [_row(entry) for entry in record["implementations"]])
    summary = [f"{OURS_LABEL[group]} / ours = {best['ratio']:.2f}" for group, best in record["ratios"].items()]
    floor = record["floor"]
    if record["share_of_roof"] is not None:
        floor_text = f"floor {_time(floor['seconds'])} ({floor['bound']})"
        summary.append(f"{floor_text}, ours at {record['share_of_roof']:.0%} of the roof")
    return "\n".join([*lines, "", "; ".join(summary), ""])


def machine_text(document: dict) -> str:
    """What it ran on, in two lines."""
    machine, roofs = document["machine"], document["roofs"]
    where = f"{machine['gpu']}, " if "gpu" in machine else ""
    dirty = {True: " with changes", False: "", None: ""}[document["dirty"]]
    return (
        f"{where}{machine['cpu']}, {machine['threads']} threads of {machine['usable_cores']} cores, "
        f"level {machine['isa'] or 'none'}, torch {machine['torch']}, commit {document['commit'][:12]}{dirty}\n"
        f"roofs: read {roofs['read_gb_s']:.1f} GB/s, matrix product {roofs['matmul_gflop_s']:.0f} GFLOP/s, "
        f"exp {roofs['exp_g_s']:.1f} G/s\n"
    )


def write_json(document: dict, path: Path) -> None:
    """Writes the whole file or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
