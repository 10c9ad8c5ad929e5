"""What `ovs evaluate` costs per image besides the methods: reading, decoding, metrics, writing the state.

    python benchmarks/evaluation.py --images 60 --size 375x500 --classes 21

Writes a data set of that size (JPEG photos, palette PNG masks) into a temporary folder and runs the evaluation with
the patch oracle, which costs next to nothing and needs no model. Then once more without the background thread, one
step after the other, to see what each costs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ovs_methods.data import Dataset, load_dataset, read_target
from ovs_methods.evaluate import EvaluateOptions, evaluate, new_metrics, patch_oracle
from ovs_methods.evaluation_report import OVERHEAD, READING
from ovs_methods.evaluation_state import State, mark_of
from ovs_methods.images import read_photo
from PIL import Image


def make_dataset(root: Path, count: int, size: tuple[int, int], classes: int) -> None:
    """Voronoi cells of smooth colour with noise, as JPEG, and their classes as palette PNG."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(size, dtype=np.float32)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"class {index}\n" for index in range(classes)))
    for number in range(count):
        places = rng.random((25, 2)) * size
        nearest = np.argmin([(rows - y) ** 2 + (columns - x) ** 2 for y, x in places], 0)
        colors, labels = rng.integers(30, 225, (25, 3)), rng.integers(0, classes, 25).astype(np.uint8)
        photo = colors[nearest] + rng.normal(0, 4, (*size, 3)) + 20 * np.sin(rows / 30)[..., None]
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{number:05d}.jpg", quality=95)
        mask = labels[nearest]
        mask[:3] = 255
        palette = Image.fromarray(mask)
        palette.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
        palette.save(root / "masks" / f"{number:05d}.png")


def by_step(options: EvaluateOptions, dataset: Dataset) -> dict[str, float]:
    """Median milliseconds of each step, one after the other in one thread."""
    spent: dict[str, list[float]] = {}
    metrics = new_metrics(options, dataset)
    state = State(options.out / "steps.partial", {}, [metrics])

    def timed(step: str, work: Callable[[], object]) -> object:
        start = time.perf_counter()
        made = work()
        spent.setdefault(step, []).append(1000 * (time.perf_counter() - start))
        return made

    options.out.mkdir(parents=True, exist_ok=True)
    for index, item in enumerate(dataset.items):
        photo = timed("photo", lambda item=item: read_photo(item.image))
        target = timed("mask", lambda item=item, p=photo: read_target(item.mask, dataset.rule, (p.height, p.width)))
        labels = patch_oracle(target, 16)
        counts = new_metrics(options, dataset)
        timed("metrics", lambda c=counts, p=labels, t=target: c.add(p, t))
        timed("count", lambda i=index, item=item, c=counts: state.add(i, mark_of(item), [c], {}))
        timed("write the state", state.write)
    return {step: statistics.median(values) for step, values in spent.items()}


def main() -> None:
    """Prints the milliseconds per image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--size", default="375x500", metavar="HxW")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--metrics", default="miou,biou")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = tuple(int(part) for part in arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        make_dataset(root, arguments.images, size, arguments.classes)
        names = tuple(arguments.metrics.split(","))
        options = EvaluateOptions(root, "folder", Path(folder) / "out", metrics=names, patch=16)
        start = time.perf_counter()
        document = evaluate(options).document
        whole = 1000 * (time.perf_counter() - start) / arguments.images
        steps = by_step(options, load_dataset("folder", root))
    spent = document["ms_per_image"]
    print(f"{arguments.images} images of {arguments.size}, {arguments.classes} classes, {arguments.metrics}")
    print(f"per image {spent[OVERHEAD]:.2f} ms {OVERHEAD}, waiting for the background thread included")
    print(f"          {spent[READING]:.2f} ms {READING}")
    print(f"          {whole:.2f} ms the whole run, with the oracle and the results' files")
    print("one after the other: " + ", ".join(f"{step} {value:.2f} ms" for step, value in steps.items()))


if __name__ == "__main__":
    main()
