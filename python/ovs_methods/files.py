"""Files: which images to read, and outputs that are either complete or absent."""

import glob
import os
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from .errors import UserError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TEMPORARY = ".ovs-tmp"
# What numpy.load and the arrays it gives raise for a damaged or foreign .npz file; most come of single flipped bits.
DAMAGED_NPZ = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError, MemoryError, SyntaxError),
    *(RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),  # RuntimeError: "encrypted", unknown methods
)


def list_images(arguments: list[str]) -> list[Path]:
    """The images that the user means: files as they are, folders by their image files (not their subfolders).

    Args:
        arguments: paths of files and folders.

    Returns:
        The files, in order of the arguments, folders sorted by name.

    Raises:
        UserError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            inside = [p for p in inside if not p.name.startswith(".")]
            if not inside:
                raise UserError(argument, f"a folder with images ({' '.join(IMAGE_SUFFIXES)})", "none in it")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(argument, "an image file or a folder of images", "nothing at this path")
    return list(dict.fromkeys(found))


def output_stems(images: list[Path]) -> dict[Path, str]:
    """A name for each image's outputs: `photo` for `photo.jpg`, `photo_png` where there are two photos.

    Args:
        images: the input files.

    Returns:
        A name for each of them, all different.

    Raises:
        UserError: two inputs from different folders have the same file name.
    """
    count: dict[str, int] = {}
    for path in images:
        count[path.stem] = count.get(path.stem, 0) + 1
    stems = {p: p.stem if count[p.stem] == 1 else f"{p.stem}_{p.suffix[1:]}" for p in images}
    taken: dict[str, Path] = {}
    for path, stem in stems.items():
        if stem in taken:
            raise UserError(
                path,
                "file names that differ",
                f"the same outputs as {taken[stem]}",
                "run them into two folders",
            )
        taken[stem] = path
    return stems


def check_out_folder(out: Path, option: str = "--out") -> None:
    """Raises UserError if `out`, given by `option`, cannot become a folder with our files in it. Creates nothing."""
    if out.exists() and not out.is_dir():
        raise UserError(option, "a folder", f"the file {out}")
    ancestor = out.absolute()
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(option, "a folder that can be written", f"{out} (no permission in {ancestor})")


def _remove_abandoned(folder: Path, names: list[str]) -> None:
    """Removes temporary files of these outputs whose process is gone (it was killed)."""
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*{_TEMPORARY}"):
            pid = path.name[: -len(_TEMPORARY)].rsplit(".", 1)[-1]
            if not pid.isdigit() or int(pid) == os.getpid():
                continue
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            except PermissionError:
                pass  # it lives and belongs to somebody else


def write_together(outputs: dict[Path, Callable[[Path], None]]) -> None:
    """Writes several files of one folder; a failure or an interrupt leaves none of them half-written.

    Each is written under a temporary name in the same folder; when all are complete they get their names,
    in order. The last one is thus the sign that the set is complete.

    Args:
        outputs: for each file the function that writes it to the path it is given.
    """
    folders = {path.parent for path in outputs}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder, [path.name for path in outputs if path.parent == folder])
    own = f"{threading.get_ident()}.{os.getpid()}{_TEMPORARY}"  # two threads may write the same file
    temporary = {path: path.with_name(f".{path.name}.{own}") for path in outputs}
    try:
        for path, write in outputs.items():
            write(temporary[path])
        for path in outputs:
            os.replace(temporary[path], path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
