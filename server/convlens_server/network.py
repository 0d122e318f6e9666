"""Makes a servable network of an ONNX file: uint8 images in, scores and logits out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from convlens.manifest import METADATA_KEY, ImageInput, Manifest, ManifestError
from convlens_server.composition import add_head, add_preprocessing, set_image_input, without_preprocessing
from convlens_server.errors import ModelError
from convlens_server.graph import Graph, elem_type_name
from convlens_server.model_file import read_model
from convlens_server.normalise import normalise
from convlens_server.shapes import BATCH, infer_types, tensor_types, without_weights

_MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class OwnTensors:
    """What the file itself takes and gives, before anything was put in front of it or behind it.

    Attributes:
        input_name: Of its input.
        input_type: TensorProto.DataType of its input: UINT8, FLOAT or FLOAT16.
        channels_last: Whether its input is N × height × width × channels; otherwise N × channels × height × width.
        output_name: Of its output.
        output_type: TensorProto.DataType of its output: FLOAT or FLOAT16.
        output_is: What its output is: "scores", "logits", or "" for the logarithm of the scores.
    """

    input_name: str
    input_type: int
    channels_last: bool
    output_name: str
    output_type: int
    output_is: str

    @property
    def takes_images(self) -> bool:
        """Whether its own input is what the network takes: preprocessing is in its graph."""
        return self.input_type == TensorProto.UINT8


@dataclass(frozen=True)
class Network:
    """A classifier that takes images as bytes.

    Attributes:
        model: The graph. Its only input is uint8 N × height × width × channels; its outputs are scores and logits,
            float32 N × classes each, in this order. Not to be changed.
        input_name: Of the images.
        scores_name: Of the softmax output.
        logits_name: Of what goes into the softmax.
        manifest: What the file says of itself, or what was derived for it.
        classes: Number of classes.
        fixed_batch: Images in a batch where the graph works for no other number; None if any number will do.
        own: What the file itself takes and gives.
    """

    model: onnx.ModelProto
    input_name: str
    scores_name: str
    logits_name: str
    manifest: Manifest
    classes: int
    fixed_batch: int | None
    own: OwnTensors

    @property
    def input_form(self) -> tuple[tuple[int, int, int], npt.DTypeLike]:
        """The shape and the type of one image as `model` takes it."""
        if self.input_name == self.own.input_name:
            return self.own_shape, onnx.helper.tensor_dtype_to_np_dtype(self.own.input_type)
        image = self.manifest.input
        return (image.height, image.width, image.channels), np.uint8

    @property
    def own_shape(self) -> tuple[int, int, int]:
        """The shape of one image as the file itself takes it."""
        image = self.manifest.input
        if self.own.channels_last:
            return image.height, image.width, image.channels
        return image.channels, image.height, image.width

    def for_tensors(self) -> Network:
        """The same without preprocessing: it takes what the file itself takes, float32 or float16."""
        own = self.own
        shape = ["batch" if self.fixed_batch is None else self.fixed_batch, *self.own_shape]
        value = onnx.helper.make_tensor_value_info(own.input_name, own.input_type, shape)
        return replace(self, model=without_preprocessing(self.model, value), input_name=own.input_name)


def load_network(path: Path) -> Network:
    """Reads an ONNX classifier, checks it, and puts in front of it and behind it what it lacks to be served.

    `manifest.json` beside the file comes before the manifest in the file's metadata. Without either, one is derived:
    labels class_0 …, the size from the graph, values 0 … 1.

    A uint8 N × height × width × channels input is taken as it is. A float32 or float16 input, channels first or last,
    gets the manifest's preprocessing put in front of it. A batch size that the file fixes is made free where shape
    inference shows that every tensor's first dimension follows it.

    Args:
        path: The ONNX file; external data must lie in its folder.

    Raises:
        ModelError: The file cannot be served. The text names it, what is wrong and the cure.
    """
    try:
        model = read_model(path)
        normalise(model)
        _check(model)
        return _network(model, _manifest(path, model))
    except (ModelError, ManifestError) as error:
        raise ModelError(f"{path}: {error}") from None


def _check(model: onnx.ModelProto) -> None:
    """Lets onnx look for what is malformed, unless the file is newer than the installed onnx knows."""
    if any(entry.version > onnx.defs.onnx_opset_version() for entry in model.opset_import if not entry.domain):
        return
    skeleton = without_weights(model)
    for value in (*skeleton.graph.input, *skeleton.graph.output):
        # onnx wants a shape here; onnxruntime does not, and finds it out.
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(f"its graph is malformed ({reason}); export it again") from None


def _manifest(path: Path, model: onnx.ModelProto) -> Manifest | None:
    file = path.with_name(_MANIFEST_FILE)
    try:
        text: str | bytes | None = file.read_bytes()
        source = _MANIFEST_FILE
    except FileNotFoundError:
        text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
        source = f"metadata {METADATA_KEY!r}"
    except OSError as error:
        raise ModelError(f"{_MANIFEST_FILE} beside it cannot be read: {error.strerror}") from None
    if text is None:
        return None
    try:
        return Manifest.from_json(text)
    except ManifestError as error:
        raise ModelError(f"its {source} is wrong: {error}; correct it in a {_MANIFEST_FILE} beside the file") from None


def _network(model: onnx.ModelProto, manifest: Manifest | None) -> Network:
    graph = model.graph
    name, elem_type, dims = _image_input(graph)
    own_input = name
    if len(graph.output) != 1:
        outputs = ", ".join(value.name for value in graph.output) or "none"
        raise ModelError(
            f"it has {len(graph.output)} outputs ({outputs}), but a classifier has one; export only the scores or the "
            "logits"
        )
    image, channels_last = _match(dims, elem_type, manifest.input if manifest else None)
    batch = dims[0]
    if elem_type == TensorProto.UINT8:
        set_image_input(graph, name, image, batch)
    else:
        name = add_preprocessing(model, image, elem_type, channels_last, batch)
    output = graph.output[0].name
    output_type = graph.output[0].type.tensor_type.elem_type
    scores, logits = add_head(model, name)
    index = Graph(model, name)
    kind = next((kind for kind, tensor in (("scores", scores), ("logits", logits)) if _is(index, tensor, output)), "")
    own = OwnTensors(own_input, elem_type, channels_last, output, output_type, kind)
    if batch is not None and _batch_is_free(model, index, scores, logits):
        batch = None
        set_image_input(graph, name, image, batch)
    classes = _classes(model, index, (scores, logits), output, batch)
    graph.ClearField("output")
    for tensor in (scores, logits):
        shape = ["batch" if batch is None else batch, classes]
        graph.output.append(onnx.helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape))
    if manifest is None:
        manifest = Manifest(tuple(f"class_{n}" for n in range(classes)), image)
    elif len(manifest.labels) != classes:
        raise ModelError(
            f"its manifest has {len(manifest.labels)} labels, but its output {output!r} has {classes} classes; "
            f"give one label for each class in a {_MANIFEST_FILE} beside the file"
        )
    return Network(model, name, scores, logits, manifest, classes, batch, own)


def _is(index: Graph, tensor: str, output: str) -> bool:
    """Whether a tensor is the file's output, at most widened to float32."""
    node = index.producers[tensor]
    return tensor == output or (node.op_type == "Cast" and node.input[0] == output)


def _image_input(graph: onnx.GraphProto) -> tuple[str, int, list[int | None]]:
    """The name, element type and four dimensions (None where open) of the image input."""
    if len(graph.input) != 1:
        inputs = ", ".join(value.name for value in graph.input) or "none"
        raise ModelError(f"it has {len(graph.input)} inputs ({inputs}), but an image classifier has one: the image")
    value = graph.input[0]
    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
    if not value.type.HasField("tensor_type") or len(dims) != 4:
        shown = " × ".join("?" if dim is None else str(dim) for dim in dims) or "unknown"
        raise ModelError(
            f"its input {value.name!r} has shape {shown}, but an image classifier's has four dimensions: images, "
            "channels, height, width (or channels last)"
        )
    if kind.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8):
        raise ModelError(
            f"its input {value.name!r} holds {elem_type_name(kind.elem_type)} numbers, but must hold float32 or "
            "float16 ones (or uint8 if preprocessing is in the graph); export it with a float input"
        )
    return value.name, kind.elem_type, dims


def _match(dims: list[int | None], elem_type: int, expected: ImageInput | None) -> tuple[ImageInput, bool]:
    """What image the graph takes, and whether channels last; checked against the manifest's."""
    in_graph = elem_type == TensorProto.UINT8
    if expected is not None and expected.in_graph != in_graph:
        raise ModelError(
            f"its manifest says input.in_graph is {str(expected.in_graph).lower()}, but its input holds "
            f"{elem_type_name(elem_type)} numbers; set it to {str(in_graph).lower()} in a {_MANIFEST_FILE} "
            "beside the file"
        )
    shown = " × ".join("?" if dim is None else str(dim) for dim in dims)
    layouts = {True: (dims[3], dims[1], dims[2]), False: (dims[1], dims[2], dims[3])}
    for channels_last in (True,) if in_graph else (False, True):
        channels, height, width = layouts[channels_last]
        if channels not in (1, 3):
            continue
        if expected is None:
            if height is None or width is None:
                raise ModelError(
                    f"its input is {shown}: height and width are open; say which to use in a {_MANIFEST_FILE} beside "
                    "the file"
                )
            return ImageInput(height, width, channels, in_graph=in_graph), channels_last
        sizes = ((channels, expected.channels), (height, expected.height), (width, expected.width))
        if all(has in (None, wants) for has, wants in sizes):
            return expected, channels_last
    if expected is None or not any(channels in (1, 3) for channels, _, _ in layouts.values()):
        where = "last dimension (uint8 images are channels last)" if in_graph else "second or last dimension"
        raise ModelError(f"its input is {shown}, but an image's channels, 1 or 3, must be the {where}; export it so")
    raise ModelError(
        f"its manifest says height {expected.height}, width {expected.width}, channels {expected.channels}, but its "
        f"input is {shown}; correct the manifest in a {_MANIFEST_FILE} beside the file"
    )


def _batch_is_free(model: onnx.ModelProto, index: Graph, scores: str, logits: str) -> bool:
    """Whether a graph that declares one batch size works for any: every tensor of the image's path follows it."""
    try:
        types = infer_types(model, index, BATCH)
    except ModelError:
        return False
    return all(
        name in types and (not types[name].is_float or types[name].batch_axis(BATCH) == 0) for name in index.on_path
    ) and all(len(types[name].dims) == 2 for name in (scores, logits))


def _classes(model: onnx.ModelProto, index: Graph, outputs: tuple[str, str], declared: str, batch: int | None) -> int:
    types = tensor_types(model, index, batch or BATCH, outputs)
    shapes = [types[name].dims for name in outputs]
    if any(len(dims) != 2 or dims[0] != (batch or BATCH) for dims in shapes) or shapes[0] != shapes[1]:
        shown = " × ".join("N" if n == 0 else str(dim) for n, dim in enumerate(shapes[0])) or "a single number"
        raise ModelError(
            f"its output {declared!r} is {shown}, but a classifier's is N × classes; export the scores or logits of "
            "its classes as its only output"
        )
    return shapes[0][1]
