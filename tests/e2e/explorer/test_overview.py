"""The overview: what it shows of a network, and what happens as one points, chooses and turns pages."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from convlens.v1 import convlens_pb2 as pb
from visiting import Visit, node, place, ready, samples, scores, unit

TINY = "#model=tiny_vgg&image=espresso"
LAYERS = [
    "conv_1_1", "relu_1_1", "conv_1_2", "relu_1_2", "max_pool_1",
    "conv_2_1", "relu_2_1", "conv_2_2", "relu_2_2", "max_pool_2", "flatten", "output", "softmax",
]  # fmt: skip


@pytest.fixture
def maps(served):
    """Asks the server for what the page shows: `maps(model, image, *layers)`."""

    def ask(model, image, *layers):
        images = pb.Images(encoded=pb.EncodedImages(files=[samples(served, model)[image]]))
        request = pb.GetFeatureMapsRequest(model=model, images=images, layers=layers)
        found = {}
        for message in served.stub.GetFeatureMaps(request):
            if not message.byte_offset:
                shape, data = tuple(message.shape), b""
            data += message.data
            if len(data) == 4 * np.prod(shape):
                found[message.layer] = np.frombuffer(data, "<f4").reshape(shape)[0]
        return found

    return ask


def legend(page, layer):
    """Lowest and highest number of the legend that a layer's maps have."""
    ticks = page.locator(f'.colours[data-layers~="{layer}"] .colours-ticks span').all_inner_texts()
    return [float(text.replace("−", "-")) for text in (ticks[0], ticks[-1])]


def painted(page, layer, channel, place=0):
    """The pixels of a map, height × width × RGB."""
    pixels = (
        unit(page, layer, channel)
        .locator("canvas")
        .nth(place)
        .evaluate(
            """(canvas) => {
          const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
          copy.drawImage(canvas, 0, 0);
          return [canvas.height, canvas.width, ...copy.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
        )
    )
    return np.array(pixels[2:]).reshape(pixels[0], pixels[1], 4)[..., :3]


def table(page, name, theme="light"):
    """A table of 256 colours, as RGB."""
    script = """async ([name, theme]) => {
      const { tables } = await import("/explorer/js/colours.js");
      return [...new Uint8Array(tables(theme)[name].buffer)];
    }"""
    return np.array(page.evaluate(script, [name, theme])).reshape(256, 4)[:, :3]


def test_every_layer_has_a_column_and_every_channel_a_map(visit: Visit):
    page = visit.on(TINY)
    names = page.eval_on_selector_all(".node", "nodes => nodes.map((node) => node.dataset.node)")
    assert names == ["input", *LAYERS]
    expect(node(page, "input").locator("canvas")).to_have_count(3)
    for layer in LAYERS[:10]:
        expect(node(page, layer).locator("canvas")).to_have_count(10)
    expect(node(page, "flatten").locator("canvas")).to_have_count(1)
    expect(node(page, "output").locator(".map")).to_have_count(10)
    expect(node(page, "softmax").locator(".map")).to_have_count(10)
    expect(node(page, "input").locator(".note")).to_have_text(["red", "green", "blue"])


def test_a_map_has_the_colours_of_its_values(visit: Visit, maps):
    page = visit.on(TINY)
    values = maps("tiny_vgg", "espresso", "conv_1_1", "relu_1_1")
    # The range of a unit: the convolution and what follows it.
    bound = max(np.abs(values["conv_1_1"]).max(), np.abs(values["relu_1_1"]).max())
    colours = table(page, "activation")
    for layer in ("conv_1_1", "relu_1_1"):
        shown = painted(page, layer, 3)
        position = (values[layer][3] / bound + 1) / 2 * 255
        # The map came as bytes: a value may be half a step of its channel's 255 away.
        slack = np.ptp(values[layer][3]) / 255 / (2 * bound) * 255 / 2 + 1
        low, high = np.floor(position - slack).astype(int), np.ceil(position + slack).astype(int)
        close = np.zeros(position.shape, bool)
        for step in range(int((high - low).max()) + 1):
            close |= (colours[np.clip(low + step, 0, 255)] == shown).all(-1)
        assert close.all()


def test_a_thumbnail_brings_its_maps_and_scores(visit: Visit, served, maps):
    page = visit.on(TINY)
    before = painted(page, "conv_1_1", 0)
    page.locator('[data-image="pizza"]').click()
    ready(page, "pizza")
    assert (painted(page, "conv_1_1", 0) != before).any()
    expect(page.locator('[data-image="pizza"]')).to_have_attribute("aria-pressed", "true")
    expect(node(page, "softmax").locator(".is-best .label")).to_have_text("pizza")
    exact = maps("tiny_vgg", "pizza", "softmax")["softmax"]
    np.testing.assert_allclose(scores(page), exact, rtol=1e-4, atol=1e-7)
    assert place(page)["image"] == "pizza"


@pytest.mark.parametrize(
    ("layer", "sources", "targets"), [("conv_1_2", 10, 1), ("relu_1_2", 1, 1), ("max_pool_1", 1, 10)]
)
def test_pointing_at_a_map_shows_its_edges_and_their_ends(visit: Visit, layer, sources, targets):
    page = visit.on(TINY)
    unit(page, layer, 4).hover()
    expect(page.locator(".is-source")).to_have_count(sources)
    expect(page.locator(".is-target")).to_have_count(targets)
    for way, count in (("in", sources), ("out", targets)):
        path = page.locator(f".strong .{way}").get_attribute("d")
        assert path.count("M") == count
    expect(unit(page, layer, 4)).to_have_class("map is-pointed")
    page.mouse.move(2, 400)
    expect(page.locator(".is-source, .is-target, .is-pointed, .strong path")).to_have_count(0)


def test_pointing_tells_the_value_under_the_pointer(visit: Visit, maps):
    page = visit.on(TINY)
    canvas = unit(page, "max_pool_2", 2).locator("canvas")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 5.5 / 13, box["y"] + box["height"] * 8.5 / 13)
    chip = page.locator(".chip")
    expect(chip).to_contain_text("max_pool_2, channel 2")
    expect(chip).to_contain_text("row 8, column 5")
    shown = float(chip.locator("span").first.inner_text().rpartition(": ")[2].replace("−", "-"))
    values = maps("tiny_vgg", "espresso", "max_pool_2")["max_pool_2"][2]
    assert shown == pytest.approx(float(values[8, 5]), abs=float(np.ptp(values)) / 255 + 0.01)


def test_pointing_at_a_class_tells_its_score(visit: Visit, maps):
    page = visit.on(TINY)
    values = maps("tiny_vgg", "espresso", "output", "softmax")
    unit(page, "softmax", 1).hover()
    chip = page.locator(".chip")
    expect(chip).to_contain_text(f"score {values['softmax'][1]:.4f}")
    expect(chip).to_contain_text(f"logit {values['output'][1]:.3f}")
    decoration = (
        unit(page, "softmax", 1).locator(".label").evaluate("label => getComputedStyle(label).textDecorationLine")
    )
    assert decoration == "underline"
    unit(page, "flatten", 0).hover()
    expect(chip).to_contain_text("flatten, unit")


def test_details_are_dimensions_figures_and_legends(visit: Visit):
    page = visit.on(TINY)
    expect(page.locator(".figures, .colours")).to_have_count(0)
    page.locator("#details").click()
    figures = node(page, "conv_1_1").locator(".figures dd")
    expect(figures).to_have_text(["62 × 62 × 10", "3×3", "280", "1.04 M", "472 M"])
    assert page.locator(".colours").count() > 5
    expect(page).to_have_url(re.compile("details=1"))
    page.keyboard.press("d")
    expect(page.locator(".figures, .colours")).to_have_count(0)


@pytest.mark.parametrize("scale", ["unit", "module", "network"])
def test_every_legend_is_right_after_every_change(visit: Visit, maps, scale):
    page = visit.on(f"{TINY}&details=1")
    groups = {
        "unit": [["conv_1_1", "relu_1_1"], ["conv_1_2", "relu_1_2", "max_pool_1"], ["conv_2_1", "relu_2_1"],
                 ["conv_2_2", "relu_2_2", "max_pool_2", "flatten"]],
        "module": [LAYERS[:5], LAYERS[5:10], ["flatten"]],
        "network": [LAYERS[:11]],
    }[scale]  # fmt: skip

    def check(image):
        values = maps("tiny_vgg", image, *LAYERS, "input")
        for group in groups:
            bound = max(np.abs(values[layer]).max() for layer in group)
            for layer in group:
                assert legend(page, layer) == pytest.approx([-bound, bound], rel=0.06), (image, layer)
        for layer in ("input", "output"):
            assert legend(page, layer) == pytest.approx([values[layer].min(), values[layer].max()], rel=0.06, abs=0.006)

    page.locator("#scale").select_option("network" if scale == "unit" else "unit")
    page.locator("#scale").select_option(scale)
    ready(page)
    check("espresso")
    page.locator('[data-image="koala"]').click()
    ready(page, "koala")
    check("koala")


def test_a_layers_name_opens_its_explanation(visit: Visit):
    page = visit.on(TINY)
    article = page.locator("aside.article")
    expect(article).to_be_hidden()
    node(page, "max_pool_1").locator(".node-name").click()
    expect(article).to_be_visible()
    expect(article.get_by_role("heading", name="Pooling", exact=True)).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(article).to_be_hidden()


def test_a_wide_layer_has_pages(visit: Visit, maps):
    page = visit("#model=lecture_cnn&image=7")
    conv = node(page, "conv_2")
    expect(conv.locator(".pages")).to_contain_text("1–10 of 64")
    conv.get_by_role("button", name="Further channels of conv_2").click()
    expect(conv.locator(".pages")).to_contain_text("11–20 of 64")
    ready(page)
    values = maps("lecture_cnn", "7", "conv_2")["conv_2"]
    assert painted(page, "conv_2", 12).shape[:2] == values[12].shape
    assert len(np.unique(painted(page, "conv_2", 12).reshape(-1, 3), axis=0)) > 3
    for _ in range(5):
        conv.get_by_role("button", name="Further channels of conv_2").click()
    expect(conv.locator(".pages")).to_contain_text("61–64 of 64")
    expect(conv.locator(".map")).to_have_count(4)
    expect(conv.get_by_role("button", name="Further channels of conv_2")).to_be_disabled()


def test_images_side_by_side_share_their_colours(visit: Visit, maps):
    page = visit(f"{TINY}&details=1")
    page.locator("#way-several").click()
    page.locator('[data-image="pizza"]').click()
    ready(page, "espresso", "pizza")
    expect(unit(page, "conv_1_1", 0).locator("canvas")).to_have_count(2)
    assert (painted(page, "conv_1_1", 0, 0) != painted(page, "conv_1_1", 0, 1)).any()
    both = [np.abs(maps("tiny_vgg", image, "conv_1_1")["conv_1_1"]).max() for image in ("espresso", "pizza")]
    assert legend(page, "conv_1_1") == pytest.approx([-max(both), max(both)], rel=0.06)
    page.locator('[data-image="espresso"]').click()
    ready(page, "pizza")
    expect(unit(page, "conv_1_1", 0).locator("canvas")).to_have_count(1)


def test_a_branching_network_has_blocks_to_fold(visit: Visit):
    page = visit("#model=branching")
    names = set(page.eval_on_selector_all(".node", "nodes => nodes.map((node) => node.dataset.node)"))
    assert {"stem.conv", "block1.add", "depthwise", "pointwise", "concat", "classifier"} <= names
    frame = page.locator('.frame button[data-block="block1"]')
    frame.click()
    expect(node(page, "block:block1")).to_be_visible()
    expect(node(page, "block1.conv1")).to_have_count(0)
    ready(page)
    node(page, "block:block1").locator(".node-name").click()
    expect(node(page, "block1.conv1")).to_be_visible()
    page.locator("#folds").click()
    expect(node(page, "block2.conv1")).to_have_count(0)
    page.locator("#folds").click()
    ready(page)
    # One line each: a depthwise convolution takes one channel, a concatenation hands on one.
    for layer in ("depthwise", "concat"):
        unit(page, layer, 2).hover()
        expect(page.locator(".is-source")).to_have_count(1)
    unit(page, "block1.add", 1).hover()
    expect(page.locator(".is-source")).to_have_count(2)


def test_resnet_opens_all_its_layers(visit_grown: Visit):
    page = visit_grown()
    assert page.locator(".node").count() < 20
    page.locator("#folds").click()
    ready(page)
    assert page.locator(".node").count() > 45
    last = page.locator(".node").last
    last.scroll_into_view_if_needed()
    ready(page)
    expect(last.locator(".map")).to_have_count(6)
    # No page of channels is asked for before it comes near.
    expect(node(page, "layer4.1.relu_1").locator("canvas").first).to_have_attribute("width", "7")
