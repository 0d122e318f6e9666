"""What notebooks and matplotlib show of the results."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import textwrap
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest

import convlens
from convlens._pictures import enlarged, kernels
from convlens.v1 import convlens_pb2 as pb
from unit.client import lens_messages as messages


@pytest.fixture
def client(address):
    with convlens.Client(address) as client:
        yield client


class _Page(HTMLParser):
    """Checks that elements are closed in order, and keeps images and text."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


def page(item):
    """The parsed HTML of a result, which needs nothing beside itself."""
    source = item._repr_html_()
    parsed = _Page()
    parsed.feed(source)
    assert parsed.open == []
    assert not re.search(r"https?:|<script|<link|url\(", source)
    for image in parsed.images:
        head, data = image.split(",")
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        PIL.Image.open(io.BytesIO(base64.b64decode(data))).load()
    return parsed


def drawn(figure):
    """The pixels of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    with PIL.Image.open(buffer) as image:
        pixels = np.asarray(image)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 2
    return pixels


def feature_map(shape):
    values = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return convlens.FeatureMap("conv<1>", "conv", values, (), "m", 1, 0.5, 1.5)


def test_a_classification():
    predictions = (convlens.Prediction("<koala>", 1, 0.75), convlens.Prediction("pizza", 2, 0.25))
    shown = page(convlens.Classification(predictions, "m", 2, 0.5, 1.5))
    assert "<koala>" in shown.text
    assert "75.00%" in shown.text


@pytest.mark.parametrize(("shape", "images"), [((70, 5, 6), 1), ((6, 2, 5, 6), 4), ((10,), 1), ((3, 10), 3)])
def test_feature_maps(shape, images):
    layer = feature_map(shape)
    shown = page(layer)
    assert len(shown.images) == images
    assert "conv<1>" in shown.text
    assert ("the first 64 channels" in shown.text) == (shape[0] == 70)
    figure = layer.plot()
    drawn(figure)
    assert len(figure.axes) == images


def test_a_figure_that_is_given_is_drawn_into():
    from matplotlib.figure import Figure

    figure = Figure((2, 2))
    assert feature_map((2, 5, 6)).plot(figure) is figure
    assert len(figure.axes) == 1


def test_a_model(client, fake):
    layer = pb.Layer(name="conv_1", kind="conv", shape=[2, 3, 3], kernel=[3, 3], parameters=1234)
    fake.expect("GetModel", pb.GetModelResponse(model="m", version=2, labels=["a"], layers=[layer], device="cpu"))
    shown = page(client.model("m"))
    assert "conv_1" in shown.text
    assert "2×3×3" in shown.text
    assert "1,234" in shown.text


def test_a_graph_and_a_sample(client, fake):
    fake.expect("GetGraph", messages.graph())
    assert "162" in page(client.graph()).text
    assert len(page(convlens.Sample("a&b", messages.png())).images) == 1


@pytest.mark.parametrize("shape", [(40, 3, 3, 3), (40, 100), (7,), (1, 1, 1, 1)])
def test_kernels(client, fake, shape):
    values = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    fake.expect("GetKernels", messages.kernels(values))
    layer = client.kernels("conv_1")
    shown = page(layer)
    assert len(shown.images) == 1
    assert ("the first 32" in shown.text) == (shape[0] == 40)
    drawn(layer.plot())


@pytest.mark.parametrize("name", messages.ARITHMETIC)
def test_explanations(client, fake, name):
    fake.expect("ExplainUnit", messages.explained(**messages.ARITHMETIC[name]))
    unit = client.explain(b"1", "a", 3)
    shown = page(unit)
    assert str(unit) in shown.text
    if name == "wide_weighted_sum":
        assert "Σ = 4" in shown.text
        assert "2 more channels" in shown.text
    drawn(unit.plot())


def test_a_reduction_over_channels_shows_all_of_them(client, fake):
    pooling = pb.Pooling(patch=messages.patch([[[1, 2]], [[5, 3]], [[4, 0]]]), argmax=2)
    fake.expect("ExplainUnit", messages.explained(pooling=pooling))
    (axes,) = client.explain(b"1", "a", 3).plot().axes
    assert [text.get_text() for text in axes.texts] == ["1", "2", "5", "3", "4", "0"]
    (outline,) = axes.patches
    assert outline.get_xy() == (-0.5, 0.5)


def test_contributions_are_named_by_their_channels(client, fake):
    # Of the second group of a 1 × 1 convolution.
    values = np.array([1, 2], np.float32)[:, None, None]
    weighted = pb.WeightedSum(
        patch=messages.patch(values, "b", (64, 0, 0)), weights=[1, 1], products=[1, 2], channel_sums=[1, 2], sum=3,
        largest=[1, 0],
    )  # fmt: skip
    fake.expect("ExplainUnit", messages.explained(weighted_sum=weighted))
    unit = client.explain(b"1", "a", 3)
    assert page(unit).text.split()[-8:] == ["65", "2", "1", "2", "64", "1", "1", "1"]
    assert [label.get_text() for label in unit.plot().axes[0].get_yticklabels()] == ["b[65]", "b[64]"]


@pytest.mark.parametrize("own", [0, 99])
def test_a_softmax_of_many_classes_shows_the_first_and_its_own(client, fake, own):
    logits = np.arange(100, dtype=np.float32)[:, None, None] / 10
    exponentials = np.exp(logits.ravel().astype(np.float64) - 9.9)
    softmax = pb.Softmax(
        patch=messages.patch(logits, "output"), exponentials=exponentials, sum=exponentials.sum(), index=own
    )
    fake.expect("ExplainUnit", messages.explained(softmax=softmax))
    figure = client.explain(b"1", "softmax", own).plot()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert (len(labels), labels[:2]) == (40, ["99", "98"])
    assert str(own) in labels


@pytest.mark.parametrize("overlay", [b"", bytes(range(24))])
@pytest.mark.parametrize("method", [pb.ATTRIBUTION_METHOD_OCCLUSION, pb.ATTRIBUTION_METHOD_EIGEN_CAM])
def test_attributions(client, fake, overlay, method):
    values = np.linspace(-1 if method == pb.ATTRIBUTION_METHOD_OCCLUSION else 0, 1, 6, dtype="<f4")
    fake.expect("Attribute", messages.attributed(overlay=overlay, method=method, map=values.tobytes()))
    result = client.attribute(b"1")
    shown = page(result)
    assert len(shown.images) == 1
    assert "<koala> (75.00%)" in shown.text
    figure = result.plot()
    drawn(figure)
    assert len(figure.axes) == (3 if overlay else 2)


def test_maximizing_images(client, fake):
    fake.expect("MaximizingImages", messages.maximizing())
    found, none = client.maximizing("conv_1")
    assert "a/b.png" in page(found).text
    assert len(page(found).images) == 1
    drawn(found.plot())
    with pytest.raises(ValueError, match="images=True"):
        none.plot()


def test_an_attribution_is_enlarged_by_whole_numbers():
    overlay = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    image = enlarged(overlay)
    assert image.size == (768, 512)
    np.testing.assert_array_equal(np.asarray(image)[::256, ::256], overlay)


def test_weights_have_one_range():
    weights = np.zeros((2, 1, 1, 2), np.float32)
    weights[0, 0, 0], weights[1, 0, 0] = (-1, 1), (0, 0.5)
    pixels = np.asarray(kernels(weights))
    (brown, green), (white, pale) = (
        [tuple(map(int, pixels[2 + row * 22 + 10, 2 + column * 20 + 10])) for column in range(2)] for row in range(2)
    )
    assert white == (245, 245, 245)
    assert brown[0] > brown[2]
    assert green[1] > green[0]
    assert sum(green) < sum(pale) < sum(white)


def test_plots_without_matplotlib_name_the_extra():
    program = textwrap.dedent("""
        import sys

        sys.modules["matplotlib"] = None
        sys.modules["matplotlib.figure"] = None
        import numpy as np

        import convlens

        layer = convlens.FeatureMap("a", "conv", np.zeros((1, 2, 2), np.float32), (0,), "m", 1, 0.0, 0.0)
        assert "data:image/png" in layer._repr_html_()
        try:
            layer.plot()
        except ModuleNotFoundError as error:
            print(error)
        """)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'convlens[plot]'" in result.stdout, result.stderr


def test_the_sdk_alone_imports_neither_pillow_nor_matplotlib():
    program = "import sys, convlens; print(sorted({'PIL', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "[]\n", result.stderr
