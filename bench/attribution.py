"""Measures whether attributions point at what the answer comes from: deletion and insertion scores, against random.

    mkdir -p /somewhere && tar xzf tiny_imagenet_10.tar.gz -C /somewhere
    .venv/bin/python bench/attribution.py /somewhere/tiny_imagenet_10/val --update-readme

Source: V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
arXiv 1806.07421. Pixels are taken from the image in the order of an attribution, highest first (deletion: the class's
score should fall early), or given to a blurred image in that order (insertion: it should rise early). The score is the
mean under the curve of the score over the share of pixels. Everything is asked of a server by its public methods.

Networks of colour images get the folder's; networks of grey ones get as many of the digits that `convlens train` has.
"""

from __future__ import annotations

import io
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from command import finish, new_parser
from convlens.v1 import convlens_pb2 as pb
from convlens.v1 import convlens_pb2_grpc
from convlens_training import datasets
from convlens_training.recipes import ImageSize
from machine import machine
from processes import accepts, free_ports, serving
from tables import goal, goal_table, table

_HERE = Path(__file__).parent
_MODELS = ("tiny_vgg", "tiny_vgg_bn", "lecture_cnn")
METHODS = {
    "occlusion": pb.ATTRIBUTION_METHOD_OCCLUSION,
    "Score-CAM": pb.ATTRIBUTION_METHOD_SCORE_CAM,
    "Eigen-CAM": pb.ATTRIBUTION_METHOD_EIGEN_CAM,
    "Grad-CAM": pb.ATTRIBUTION_METHOD_GRAD_CAM,
}
# Smooth as an attribution is, which pixels in any order are not: these change the image's texture everywhere at once.
RANDOM, PIXELS = "random maps", "random pixels"
_TITLES = (
    "network",
    "order of the pixels",
    "deletion (less is better)",
    "insertion (more is better)",
    "images where insertion is better than the random maps'",
    "server ms a map (median)",
)
_ENDINGS = {".jpeg", ".jpg", ".png", ".webp"}
# Points of a curve besides its first.
_STEPS = 32
# Random maps for an image, whose scores are averaged.
_RANDOM_MAPS = 4
# The least by which the mean of each method must be better than that of the random maps, in each of both scores. Set
# after a look at the figures of the photos.
MARGIN = 0.01

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]


class Asking:
    """Asks a server about one of its models.

    Args:
        stub: Of the server.
        model: Name of the model.

    Attributes:
        size: Rows and columns of its input.
        grey: Whether its input has one channel.
    """

    def __init__(self, stub: convlens_pb2_grpc.ConvLensStub, model: str) -> None:
        self._stub = stub
        self._model = model
        described = stub.GetModel(pb.GetModelRequest(model=model), timeout=30)
        self.size = described.height, described.width
        self.grey = described.channels == 1

    def attribution(self, image: Pixels, method: pb.AttributionMethod.ValueType) -> tuple[Values, float]:
        """An attribution of the class with the highest score: height × width; and the milliseconds that it took."""
        request = pb.AttributeRequest(model=self._model, images=_raw(image[None]), method=method)
        answer = self._stub.Attribute(request, timeout=60)
        return np.frombuffer(answer.map, "<f4").reshape(answer.height, answer.width), answer.compute_ms

    def scores(self, images: Pixels) -> Values:
        """The scores of images: N × classes."""
        request = pb.ClassifyRequest(model=self._model, images=_raw(images), include_scores=True)
        return np.array([each.scores for each in self._stub.Classify(request, timeout=60).results], np.float32)


def curves(
    asking: Asking, image: Pixels, values: Values, class_index: int, random: np.random.Generator
) -> tuple[float, float]:
    """The deletion and the insertion score of an attribution.

    Args:
        asking: Gives the scores.
        image: height × width × channels.
        values: The attribution.
        class_index: The class that it is about.
        random: Orders pixels of equal value.
    """
    shuffled = random.permutation(values.size)
    order = shuffled[np.argsort(-values.ravel()[shuffled], kind="stable")]
    rank = np.empty(values.size, np.int64)
    rank[order] = np.arange(values.size)
    ends = np.linspace(0, values.size, _STEPS + 1)
    taken = (rank < ends[:, None]).reshape(-1, *values.shape, 1)
    plain = np.rint(image.reshape(-1, image.shape[-1]).mean(0)).astype(np.uint8)
    sides = min(values.shape)
    blurred = Image.fromarray(image.squeeze()).filter(ImageFilter.GaussianBlur(sides / 16))
    scores = asking.scores(
        np.concatenate(
            [np.where(taken, plain, image), np.where(taken, image, np.asarray(blurred).reshape(image.shape))]
        )
    )
    deletion, insertion = scores[:, class_index].reshape(2, -1)
    return float(_area(deletion)), float(_area(insertion))


def random_map(size: tuple[int, int], random: np.random.Generator) -> Values:
    """Random values, one for each eighth of the image in both directions, spread over it smoothly."""
    coarse = Image.fromarray(random.random((8, 8), np.float32))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR))


def measure(folder: Path, models: Sequence[str], most: int | None) -> dict[str, Any]:
    """Measures all methods on the images of a folder.

    Args:
        folder: Of images, at any depth.
        models: Names of models that ship.
        most: Images to take, evenly from the whole; None takes all.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
    if most is not None and most < len(files):
        files = [files[n * len(files) // most] for n in range(most)]
    if not files:
        raise SystemExit(f"no images in {folder}: give a folder of JPEG, PNG or WebP files")
    port, http_port = free_ports(2)
    command = [sys.executable, "-m", "convlens_server", "--models", str(_HERE.parent / "models"), "--device", "cpu"]
    command += ["--port", str(port), "--http-port", str(http_port), "--log-level", "warning"]
    result: dict[str, Any] = {
        "settings": {"images": len(files), "most": most, "steps": _STEPS, "margin": MARGIN},
        "machine": machine("onnxruntime", "numpy", "pillow"),
        "models": {},
    }
    with (
        serving(command, lambda: accepts(port)),
        grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel,
    ):
        stub = convlens_pb2_grpc.ConvLensStub(channel)
        for name in models:
            asking = Asking(stub, name)
            images = _digits(asking.size, len(files)) if asking.grey else (_photo(file, asking.size) for file in files)
            result["models"][name] = _measure(asking, images, name)
    result["goals"] = goals(result)
    return result


def _photo(file: Path, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB").resize(size[::-1]))


def _digits(size: tuple[int, int], count: int) -> Iterator[Pixels]:
    images = datasets.load("mnist5k", ImageSize(*size, 1), None, 0).test.images
    yield from images[np.arange(count) * len(images) // count]


def _measure(asking: Asking, images: Iterable[Pixels], name: str) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {each: [] for each in (*METHODS, RANDOM, PIXELS)}
    times: dict[str, list[float]] = {each: [] for each in METHODS}
    for n, image in enumerate(images):
        # The same random numbers for each model.
        random = np.random.default_rng(n)
        class_index = int(asking.scores(image[None])[0].argmax())
        for each, method in METHODS.items():
            values, milliseconds = asking.attribution(image, method)
            times[each].append(milliseconds)
            found[each].append(curves(asking, image, values, class_index, random))
        chance = [
            curves(asking, image, random_map(asking.size, random), class_index, random) for _ in range(_RANDOM_MAPS)
        ]
        found[RANDOM].append((statistics.mean(low for low, _ in chance), statistics.mean(high for _, high in chance)))
        pixels = random.random(asking.size, np.float32)
        found[PIXELS].append(curves(asking, image, pixels, class_index, random))
        if n % 50 == 49:
            print(f"{name}: {n + 1} images", file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        each: {"deletion": [round(low, 5) for low, _ in pairs], "insertion": [round(high, 5) for _, high in pairs]}
        for each, pairs in found.items()
    }
    for each, took in times.items():
        result[each]["compute_ms"] = statistics.median(took)
    return result


def advantages(model: dict[str, Any], method: str, curve: str) -> list[float]:
    """By how much a method is better than the random maps, image by image: where it is, positive."""
    sign = -1 if curve == "deletion" else 1
    return [sign * (a - b) for a, b in zip(model[method][curve], model[RANDOM][curve], strict=True)]


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """That the mean of each method is better than random by the margin; low and high are its 95 % interval."""
    rows = []
    for name, model in result["models"].items():
        for method in METHODS:
            for curve in ("deletion", "insertion"):
                each = advantages(model, method, curve)
                mean, error = statistics.mean(each), statistics.stdev(each) / len(each) ** 0.5
                row = goal(f"{name}, {method}: {curve}, better than the random maps by", [mean], low=MARGIN)
                rows.append({**row, "low": mean - 1.96 * error, "high": mean + 1.96 * error})
    return rows


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    where, settings = result["machine"], result["settings"]
    rows = []
    for name, model in result["models"].items():
        for method in (*METHODS, RANDOM, PIXELS):
            deletion, insertion = (model[method][curve] for curve in ("deletion", "insertion"))
            better = (
                "–"
                if method == RANDOM
                else f"{sum(a > 0 for a in advantages(model, method, 'insertion')) / len(insertion):.0%}"
            )
            took = f"{model[method]['compute_ms']:.3g}" if method in METHODS else "–"
            rows.append((name, method, _mean(deletion), _mean(insertion), better, took))
    command = "python bench/attribution.py FOLDER" + (f" --most {settings['most']}" if settings["most"] else "")
    return "\n\n".join(
        [
            f"Machine: {where['cpu']}, {where['cores']} cores; {where['kernel']}, Python {where['python']}, "
            f"onnxruntime {where['onnxruntime']}, numpy {where['numpy']}; load average before: "
            f"{where['load_before']:.2f}. Only the times depend on it.",
            f"Command: `{command}`, with {settings['images']} images, curves of {settings['steps'] + 1} points. In "
            "brackets the 95 % interval of the mean over the images.",
            goal_table(result["goals"]),
            "Mean over the images ± its standard error:",
            table(_TITLES, rows),
        ]
    )


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def _area(curve: Values) -> float:
    """The mean under a curve of evenly spaced points."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def _raw(images: Pixels) -> pb.Images:
    _, height, width, channels = images.shape
    return pb.Images(raw=pb.RawImages(pixels=images.tobytes(), height=height, width=width, channels=channels))


def main() -> int:
    """Measures or shows; returns the exit code."""
    parser = new_parser("attribution", __doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="images of what the models know, at any depth")
    parser.add_argument("--models", nargs="+", default=_MODELS, help="that ship (%(default)s)")
    parser.add_argument("--most", type=int, help="images to take of the folder")
    arguments = parser.parse_args()
    if arguments.folder is None and not arguments.table:
        parser.error("give a folder of images, or a stored result by --table")
    return finish(
        "attribution",
        arguments,
        lambda: measure(arguments.folder, arguments.models, arguments.most),
        render,
        indent=None,
    )


if __name__ == "__main__":
    sys.exit(main())
