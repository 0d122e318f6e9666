"""The view of a convolution's channel."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from reading import kernels, legends, maps, named, point, value, view, written
from support import Served
from visiting import Visit

UNIT = "#model=tiny_vgg&image=espresso&view=conv&layer=conv_1_2&unit=3,20,22"


def channel_sums(page: Page) -> list[float]:
    """The sums of the page's rows, once the server has told them."""
    expect(page.locator('[data-view="conv"] .readout output[data-name="result"]')).to_be_visible()
    return [
        float(text.get_attribute("data-value") or "nan") for text in page.locator("output[data-name=channel-sum]").all()
    ]


def test_channels_of_all_pages_and_the_bias_add_up_to_what_the_network_computes(visit: Visit, served: Served) -> None:
    page = visit.on(UNIT)
    found = view(page, "conv")
    assert found.locator(".conv-row").count() == 8
    sums = channel_sums(page)
    found.get_by_role("button", name="Next page").click()
    expect(found.locator(".conv-row")).to_have_count(2)
    sums += channel_sums(page)
    weights, biases = kernels(served, "tiny_vgg", "conv_1_2")
    window = maps(served, "tiny_vgg", "espresso", "relu_1_1")[:, 20:23, 22:25]
    np.testing.assert_allclose(sums, (window * weights[3]).sum((1, 2)), rtol=1e-4, atol=1e-6)
    assert named(found, "sum") == pytest.approx(sum(sums), rel=1e-6)
    assert named(found, "bias") == pytest.approx(float(biases[3]), rel=1e-6)
    result = named(found, "result")
    assert result == pytest.approx(named(found, "sum") + named(found, "bias"), rel=1e-6)
    assert named(found, "activation") == pytest.approx(result, rel=1e-4)
    assert result == pytest.approx(maps(served, "tiny_vgg", "espresso", "conv_1_2")[3, 20, 22], rel=1e-4)


def test_a_kernel_tells_its_weights(visit: Visit, served: Served) -> None:
    page = visit.on(UNIT)
    row = view(page, "conv").locator(".conv-row[data-channel='4']")
    chip = row.get_by_role("tooltip")
    expect(chip).to_be_hidden()
    row.locator(".kernel").hover()
    expect(chip).to_be_visible()
    shown = [written(text) for text in re.findall(r"−?\d+\.\d+", chip.inner_text())]
    weights, _ = kernels(served, "tiny_vgg", "conv_1_2")
    np.testing.assert_allclose(shown, weights[3, 4].ravel(), atol=0.005)
    page.mouse.move(0, 0)
    expect(chip).to_be_hidden()
    row.locator(".kernel").focus()
    expect(chip).to_be_visible()


def test_the_kernel_slides_and_uncovers_until_it_is_skipped(visit: Visit) -> None:
    page = visit.on(UNIT)
    found = view(page, "conv")
    skip = found.get_by_role("button", name="Skip the animation")
    expect(skip).to_be_visible()
    cover = found.locator(".conv-row > .map-box .map-cover").nth(1)
    expect(cover).to_be_visible()
    before = cover.evaluate("one => one.style.clipPath")
    page.wait_for_function("([one, before]) => one.style.clipPath !== before", arg=[cover.element_handle(), before])
    skip.click()
    expect(found.locator(".map-cover:visible")).to_have_count(0)
    expect(found.locator(".readout")).to_have_attribute("data-row", "20")
    found.get_by_role("button", name="Play the animation again").click()
    expect(cover).to_be_visible()
    # It ends by itself, at the unit of the link.
    expect(found.locator(".map-cover:visible")).to_have_count(0, timeout=15_000)
    expect(found.locator(".readout")).to_have_attribute("data-column", "22")


def test_no_animation_begins_for_those_who_want_less_motion(visit: Visit) -> None:
    page = visit.on(UNIT, reduced_motion="reduce")
    found = view(page, "conv")
    expect(found.get_by_role("button", name="Play the animation again")).to_be_visible()
    assert found.locator(".map-cover:visible").count() == 0


def test_pointing_at_a_map_moves_the_kernel_and_the_link(visit: Visit, served: Served) -> None:
    page = visit.on(UNIT, reduced_motion="reduce")
    found = view(page, "conv")
    point(page, found.locator(".conv-result figure .map-box").first, 10.5 / 60, 40.5 / 60)
    expect(found.locator(".readout")).to_have_attribute("data-row", "40")
    expect(found.locator(".readout")).to_have_attribute("data-column", "10")
    activation = maps(served, "tiny_vgg", "espresso", "conv_1_2")[3, 40, 10]
    assert named(found, "result") == pytest.approx(activation, rel=1e-4, abs=1e-6)
    expect(page).to_have_url(re.compile(r"unit=3,40,10"))
    # The field of a unit of the second 3 × 3 convolution is 5 × 5 pixels.
    field = found.locator("figure.field")
    assert [field.get_attribute(f"data-{name}") for name in ("top", "left", "height", "width")] == [
        "40",
        "10",
        "5",
        "5",
    ]
    # It stands enlarged beside the image, pixel by pixel.
    assert field.get_by_role("img", name="The receptive field, enlarged").evaluate(
        """(part) => {
          const pixels = (canvas, x, y) => canvas.getContext("2d").getImageData(x, y, 5, 5).data.join();
          const image = part.parentElement.querySelector(".map-box canvas");
          return [part.width, part.height, pixels(part, 0, 0) === pixels(image, 10, 40)];
        }"""
    ) == [5, 5, True]


def test_legends_hold_the_extents_of_what_is_shown(visit: Visit, served: Served) -> None:
    page = visit.on(f"{UNIT}&scale=unit")
    found = view(page, "conv")
    inputs, kernel, intermediate, output = legends(found)
    weights, _ = kernels(served, "tiny_vgg", "conv_1_2")
    assert kernel[1] == pytest.approx(float(np.abs(weights[3]).max()), rel=0.01)
    for low, high in (inputs, kernel, intermediate, output):
        assert low == -high
    # One unit is a convolution with its activation: all their channels share a range.
    unit = [maps(served, "tiny_vgg", "espresso", layer) for layer in ("conv_1_2", "relu_1_2")]
    assert output[1] == pytest.approx(max(float(np.abs(one).max()) for one in unit), rel=0.01)


def test_a_row_opens_its_numbers_and_escape_leads_back_step_by_step(visit: Visit) -> None:
    page = visit.on(UNIT, reduced_motion="reduce")
    view(page, "conv").locator(".conv-row[data-channel='2'] .map-box").first.click()
    found = view(page, "formula")
    expect(page.locator("section.view h2")).to_have_text("conv_1_2, channel 3 from input channel 2")
    expect(found.locator(".sums")).to_have_attribute("data-form", "weightedSum")
    page.keyboard.press("Escape")
    view(page, "conv")
    page.keyboard.press("Escape")
    expect(page.locator("section.view")).to_be_hidden()


def test_neighbouring_channels_are_a_button_away(visit: Visit) -> None:
    page = visit.on(UNIT)
    found = view(page, "conv")
    found.get_by_role("button", name="Next", exact=True).click()
    expect(page.locator("section.view h2")).to_have_text("conv_1_2, channel 4")
    found = view(page, "conv")
    found.get_by_role("spinbutton", name="Channel").fill("9")
    found.get_by_role("spinbutton", name="Channel").press("Enter")
    expect(page.locator("section.view h2")).to_have_text("conv_1_2, channel 9")


def test_nothing_runs_on_after_the_view_is_closed(visit: Visit) -> None:
    page = visit("#model=tiny_vgg&image=espresso")
    expect(page.locator("section.view")).to_be_hidden()
    page.evaluate(
        """() => {
            window.running = new Set();
            const [begin, end] = [window.setInterval, window.clearInterval];
            window.setInterval = (...all) => { const id = begin(...all); running.add(id); return id; };
            window.clearInterval = (id) => { running.delete(id); end(id); };
        }"""
    )
    page.evaluate("location.hash = '#model=tiny_vgg&image=espresso&view=conv&layer=conv_1_2&unit=3'")
    view(page, "conv")
    page.wait_for_function("running.size > 0")
    page.keyboard.press("Escape")
    expect(page.locator("section.view")).to_be_hidden()
    assert page.evaluate("running.size") == 0


def test_a_wide_convolution_shows_a_page_of_its_inputs(visit_grown: Visit, grown: Served) -> None:
    page = visit_grown.on(
        "#model=resnet18&image=pizza&view=conv&layer=layer4.1.conv1&unit=3,3,3&with-page=5", reduced_motion="reduce"
    )
    found = view(page, "conv")
    expect(found.locator(".pager span")).to_have_text("6 of 64")
    assert found.locator(".conv-row").first.get_attribute("data-channel") == "40"
    weights, _ = kernels(grown, "resnet18", "layer4.1.conv1")
    window = maps(grown, "resnet18", "pizza", "layer4.0.relu_1")[40:48, 2:5, 2:5]
    expect(found.locator(".readout output[data-name=result]")).to_be_visible()
    sums = [value(one) for one in found.locator("output[data-name=channel-sum]").all()]
    np.testing.assert_allclose(sums, (window * weights[3, 40:48]).sum((1, 2)), rtol=1e-3, atol=1e-5)


def test_links_to_what_is_not_there_are_plain_sentences(visit: Visit) -> None:
    page = visit.on("#model=tiny_vgg&image=espresso&view=conv&layer=relu_1_1&unit=3")
    expect(page.locator(".view-body")).to_have_text("This model has no such layer to show here.")
    page.keyboard.press("Escape")
    # Beyond the last channel stands the last, beyond the last unit too.
    page.evaluate("location.hash = '#model=tiny_vgg&image=espresso&view=conv&layer=conv_1_2&unit=99,99,99'")
    view(page, "conv")
    expect(page.locator("section.view h2")).to_have_text("conv_1_2, channel 9")
    page.get_by_role("button", name="Skip the animation").click()
    expect(page.locator(".readout")).to_have_attribute("data-row", "59")
