"""What a model looks like to this protocol: its input, its outputs, and how answers are written."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from convlens_server.answers import field as wire_field
from convlens_server.catalogue import Layer
from convlens_server.engine import FloatArray
from convlens_server.errors import near, shown
from convlens_server.model import Model
from convlens_server.v2 import service_pb2 as pb
from convlens_server.v2.errors import invalid
from convlens_server.v2.shared_memory import Place, SharedMemory
from convlens_server.v2.tensors import BYTES, DATATYPES, Datatype, packed, whole, written

SCORES = "scores"
LOGITS = "logits"
# Of the scores; a file may end in it.
_LOGARITHM = "logarithm"

_RAW = b"\x32"  # ModelInferResponse.raw_output_contents = 6


@dataclass(frozen=True, slots=True)
class Output:
    """An output that can be asked for.

    Attributes:
        name: By which.
        datatype: FP32, or FP16 where the file itself gives that.
        shape: For one image.
        layer: Of the lens that gives it; None: the engine does.
        of: What it is of what the engine gives: SCORES, LOGITS or _LOGARITHM.
        labels: One for each value; empty where the values are no classes.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    layer: Layer | None
    of: str
    labels: Sequence[str]

    @property
    def bytes(self) -> int:
        """Of one image."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.datatype.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output as a request wants it.

    Attributes:
        output: Which.
        classes: How many of the largest values to answer as texts; 0: all, as numbers.
        place: Where in shared memory it goes; None: into the answer.
    """

    output: Output
    classes: int = 0
    place: Place | None = None


class Plan:
    """How a request is answered: the outputs it wants, in its order.

    Attributes:
        layers: That the lens has to compute, each once.
        needs_engine: Whether the engine has to compute.
        layer_bytes: Of the layers' maps of one image, as float32.
    """

    def __init__(self, name: str, version: int, wanted: Sequence[Wanted], memory: SharedMemory | None) -> None:
        self._name = name
        self._version = version
        self._wanted = tuple(wanted)
        self._memory = memory
        layers = {each.output.layer.name: each.output.layer for each in wanted if each.output.layer is not None}
        self.layers = tuple(layers.values())
        self.needs_engine = any(each.output.layer is None for each in wanted)
        self.layer_bytes = sum(4 * int(np.prod(layer.shape, dtype=np.int64)) for layer in self.layers)
        # What does not change from one answer to the next, by the number of images.
        self._heads: dict[int, bytes] = {}

    def answer(
        self,
        count: int,
        identity: bytes,
        scores: FloatArray,
        logits: FloatArray,
        maps: Mapping[str, npt.NDArray[np.float32]],
    ) -> bytes:
        """A ModelInferResponse.

        Args:
            count: Number of images.
            identity: The request's id, as the response's field.
            scores: float32 count × classes; not looked at unless `needs_engine`.
            logits: As `scores`.
            maps: Of `layers`, by name, float32 count × the layer's shape.

        Raises:
            NotFound, SharedMemoryFailed: A region cannot be written to any more.
        """
        head = self._heads.get(count)
        if head is None:
            head = self._heads[count] = self._head(count)
        parts = [head, identity]
        for wanted in self._wanted:
            output = wanted.output
            if output.layer is not None:
                values = maps[output.layer.name]
            elif output.of == LOGITS:
                values = logits
            else:
                values = scores if output.of == SCORES else _log_softmax(logits)
            if wanted.classes:
                data = packed(_classification(values, wanted.classes, output.labels))
            else:
                data = values.astype(output.datatype.dtype, copy=False).tobytes()
            if wanted.place is not None and self._memory is not None:
                self._memory.write(wanted.place, data)
                data = b""
            parts.append(wire_field(_RAW, data))
        return b"".join(parts)

    def _head(self, count: int) -> bytes:
        response = pb.ModelInferResponse(model_name=self._name, model_version=str(self._version))
        for wanted in self._wanted:
            output = wanted.output
            tensor = response.outputs.add(name=output.name)
            if wanted.classes:
                tensor.datatype = BYTES
                tensor.shape.extend((count, wanted.classes))
            else:
                tensor.datatype = output.datatype.name
                tensor.shape.extend((count, *output.shape))
            if wanted.place is not None:
                tensor.parameters["shared_memory_region"].string_param = wanted.place.region
                tensor.parameters["shared_memory_byte_size"].int64_param = wanted.place.size
                tensor.parameters["shared_memory_offset"].int64_param = wanted.place.offset
        return response.SerializeToString()


class Face:
    """A model as this protocol shows it.

    Args:
        model: The model.
        memory: The regions of shared memory; None where that is off.
        max_images: Most images of a request, unless the model's configuration says another number.

    Attributes:
        name: Of the model.
        version: Of the model.
        max_images: Most images of a request.
        takes_images: Whether its input is what the engine's batches are of: uint8 images.
        input_name: Of its input.
        datatype: Of its input.
        shape: Of its input, for one image.
        image_bytes: Of its input, for one image.
        declared: The outputs that the metadata lists: the one that the file itself has.
        plan: How a request is answered that names no outputs.
    """

    def __init__(self, model: Model, memory: SharedMemory | None, max_images: int) -> None:
        network = model.network
        own = network.own
        self.name = model.name
        self.version = model.version
        self._memory = memory
        self.max_images = (model.config.max_batch_size if model.config is not None else 0) or max_images
        self.takes_images = own.takes_images
        self.input_name = own.input_name
        self.datatype = DATATYPES[own.input_type]
        self.shape = network.own_shape
        self.image_bytes = int(np.prod(self.shape)) * self.datatype.dtype.itemsize
        labels = model.manifest.labels
        float32 = DATATYPES[TensorProto.FLOAT]
        self._outputs = {name: Output(name, float32, (model.classes,), None, name, labels) for name in (SCORES, LOGITS)}
        for layer in model.catalogue.layers:
            self._outputs[layer.name] = Output(layer.name, float32, layer.shape, layer, "", _labels(layer, labels))
        # Comes before a layer of its name, and that before "scores" and "logits".
        self.declared = (self._own(model),)
        self._outputs[self.declared[0].name] = self.declared[0]
        self.plan = Plan(self.name, self.version, [Wanted(output) for output in self.declared], memory)
        self._plans: dict[str, Plan] = {self.declared[0].name: self.plan}

    def plan_of(self, requested: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor]) -> Plan:
        """How a request is answered that names these outputs. Raises InvalidRequest and NotFound."""
        if not requested:
            return self.plan
        if len(requested) == 1 and not requested[0].parameters:
            name = requested[0].name
            plan = self._plans.get(name)
            if plan is None:
                plan = self._plans[name] = Plan(self.name, self.version, [Wanted(self._output(name))], self._memory)
            return plan
        wanted = [self._wanted(each) for each in requested]
        names = [each.output.name for each in wanted]
        for name in names:
            if names.count(name) > 1:
                raise invalid(
                    f"output {name!r} already exists in request for model {self.name!r}: name each once",
                    "outputs",
                )
        return Plan(self.name, self.version, wanted, self._memory)

    def _own(self, model: Model) -> Output:
        """The output of the file itself."""
        own = model.network.own
        return Output(
            own.output_name,
            DATATYPES[own.output_type],
            (model.classes,),
            None,
            own.output_is or _LOGARITHM,
            model.manifest.labels,
        )

    def _output(self, name: str) -> Output:
        output = self._outputs.get(name)
        if output is None:
            raise invalid(
                f"unexpected inference output {shown(name)!r} for model {self.name!r}"
                f"{near(shown(name), self._outputs)}",
                "outputs",
                "UNKNOWN_OUTPUT",
                output=shown(name),
            )
        return output

    def _wanted(self, requested: pb.ModelInferRequest.InferRequestedOutputTensor) -> Wanted:
        output = self._output(requested.name)
        parameters = requested.parameters
        classes = 0
        if "classification" in parameters:
            classes = whole(parameters["classification"], "classification")
            if classes == 0:
                raise invalid(f"classification of output {output.name!r} is 0, but must be at least 1", "outputs")
            if len(output.shape) != 1:
                raise invalid(
                    f"output {output.name!r} for model {self.name!r} has the shape "
                    f"{written((-1, *output.shape))}, but classification needs one value for each class",
                    "outputs",
                )
            classes = min(classes, output.shape[0])
        place = place_of(parameters, f"output {output.name!r}", self._memory)
        return Wanted(output, classes, place)


class Faces:
    """The faces of all models, made when they are first asked for. Thread-safe."""

    def __init__(self, memory: SharedMemory | None, max_images: int) -> None:
        self._memory = memory
        self._max_images = max_images
        # A version that has been unloaded takes its face with it, since a face holds nothing of a model that holds it.
        self._faces: weakref.WeakKeyDictionary[Model, Face] = weakref.WeakKeyDictionary()

    def of(self, model: Model) -> Face:
        """The face of a model."""
        face = self._faces.get(model)
        if face is None:
            face = self._faces[model] = Face(model, self._memory, self._max_images)
        return face


def place_of(parameters: Mapping[str, pb.InferParameter], what: str, memory: SharedMemory | None) -> Place | None:
    """Where in shared memory a tensor is or goes; None if it travels. Raises InvalidRequest, and those of `check`."""
    if "shared_memory_region" not in parameters:
        for name in ("shared_memory_byte_size", "shared_memory_offset"):
            if name in parameters:
                raise invalid(f"{what} has {name!r}, but no 'shared_memory_region'", "parameters")
        return None
    if memory is None:
        raise invalid(
            f"{what} is in shared memory, which is off: send it, or start the server with --allow-shared-memory",
            "parameters",
        )
    if "shared_memory_byte_size" not in parameters:
        raise invalid(f"{what} has a 'shared_memory_region', but no 'shared_memory_byte_size'", "parameters")
    offset = parameters.get("shared_memory_offset")
    place = Place(
        parameters["shared_memory_region"].string_param,
        0 if offset is None else whole(offset, "shared_memory_offset"),
        whole(parameters["shared_memory_byte_size"], "shared_memory_byte_size"),
    )
    memory.check(place)
    return place


def _labels(layer: Layer, labels: Sequence[str]) -> Sequence[str]:
    return labels if layer.shape == (len(labels),) else ()


def _log_softmax(logits: FloatArray) -> FloatArray:
    # Not the logarithm of the scores: small ones are 0.
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _classification(values: npt.NDArray[np.float32], count: int, labels: Sequence[str]) -> Iterator[bytes]:
    """`value:index:label` of each row's largest values, the largest first, equal ones in the order of their indices."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    for row, indices in zip(values, order.tolist(), strict=True):
        for index in indices:
            label = f":{labels[index]}" if labels else ""
            yield f"{row[index]:.6f}:{index}{label}".encode()
