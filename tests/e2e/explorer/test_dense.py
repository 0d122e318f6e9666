"""The view of a fully connected layer's unit, and the flattened maps before it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from reading import kernels, maps, named, point, value, view, written
from support import Served
from visiting import Visit

UNIT = "#model=tiny_vgg&image=espresso&view=dense&layer=output&unit=1"


def chip(page: Page) -> dict[str, float]:
    """What is said of the input that is pointed at."""
    line = page.locator('[data-view="dense"] .chip-line')
    return {
        name: float(line.get_attribute(f"data-{name}") or "nan") for name in ("index", "value", "weight", "product")
    }


def test_products_and_bias_add_up_to_the_logit(visit: Visit, served: Served) -> None:
    page = visit.on(UNIT)
    found = view(page, "dense")
    values = maps(served, "tiny_vgg", "espresso", "max_pool_2").ravel()
    weights, biases = kernels(served, "tiny_vgg", "output")
    assert named(found, "sum") == pytest.approx(float(values.astype(np.float64) @ weights[1]), rel=1e-5)
    assert named(found, "bias") == pytest.approx(float(biases[1]), rel=1e-6)
    assert named(found, "result") == pytest.approx(named(found, "sum") + named(found, "bias"), rel=1e-6)
    assert named(found, "activation") == pytest.approx(named(found, "result"), rel=1e-4)


def test_every_map_is_drawn_not_only_the_first_and_the_last(visit: Visit) -> None:
    page = visit.on(UNIT)
    found = view(page, "dense")
    expect(found.locator(".dense-grid canvas")).to_have_count(10)
    drawn = found.locator(".dense-grid canvas").evaluate_all("all => all.map(one => [one.width, one.height])")
    assert drawn == [[13, 13]] * 10


def test_wide_layers_are_paged(visit: Visit) -> None:
    page = visit.on("#model=lecture_cnn&image=5&view=dense&layer=dense_1&unit=37")
    found = view(page, "dense")
    expect(found.locator(".dense-grid canvas")).to_have_count(16)
    expect(found.locator(".dense-maps .pager span")).to_have_text("1 of 4")
    found.get_by_role("button", name="Next page").click()
    expect(found.locator(".dense-grid figcaption").first).to_have_text("16")
    expect(page).to_have_url(re.compile("with-page=1"))


def test_hovering_a_pixel_or_the_strip_tells_value_weight_and_product(visit: Visit, served: Served) -> None:
    page = visit.on(UNIT)
    found = view(page, "dense")
    values = maps(served, "tiny_vgg", "espresso", "max_pool_2")
    weights, _ = kernels(served, "tiny_vgg", "output")
    point(page, found.locator(".dense-grid .map-box").nth(7), 4.5 / 13, 6.5 / 13)
    index = 7 * 169 + 6 * 13 + 4
    expect(found.locator(".chip-line")).to_have_attribute("data-index", str(index))
    told = chip(page)
    assert told["value"] == pytest.approx(float(values[7, 6, 4]), rel=1e-6)
    assert told["weight"] == pytest.approx(float(weights[1, index]), rel=1e-6)
    assert told["product"] == pytest.approx(told["value"] * told["weight"], rel=1e-5, abs=1e-12)
    expect(found.locator(".chip-line")).to_contain_text("max_pool_2, channel 7, row 6, column 4")
    cursor = found.locator(".strip-cursor").first.evaluate("one => parseFloat(one.style.left)")
    assert cursor == pytest.approx((index + 0.5) / 1690 * 100, abs=0.01)
    point(page, found.locator(".strip").last, 500.5 / 1690, 0.5)
    page.wait_for_function("Math.abs(document.querySelector('.chip-line').dataset.index - 500) <= 1")
    # The source pixel of the strip's value is framed in its map.
    assert found.locator(".dense-grid .map-window:visible").count() == 1


def test_weights_and_products_can_be_seen_in_place_of_values(visit: Visit, served: Served) -> None:
    page = visit.on(UNIT)
    found = view(page, "dense")
    weights, _ = kernels(served, "tiny_vgg", "output")
    found.get_by_role("radio", name="Weights").check()
    expect(found.locator(".dense-grid")).to_have_attribute("data-show", "weight")
    bound = written(found.locator(".dense-maps .legend-high").inner_text())
    assert bound == pytest.approx(float(np.abs(weights[1]).max()), rel=0.01)
    found.get_by_role("radio", name="Products").check()
    expect(page).to_have_url(re.compile("with-show=product"))


def test_the_largest_contributions_come_first(visit: Visit, served: Served) -> None:
    page = visit.on(UNIT)
    found = view(page, "dense")
    rows = found.locator("table.largest tbody tr")
    expect(rows).to_have_count(20)
    products = []
    for row in rows.all():
        products.append(named(row, "product"))
        assert products[-1] == pytest.approx(named(row, "value") * named(row, "weight"), rel=1e-5)
    assert [abs(one) for one in products] == sorted((abs(one) for one in products), reverse=True)
    values = maps(served, "tiny_vgg", "espresso", "max_pool_2").ravel()
    weights, _ = kernels(served, "tiny_vgg", "output")
    assert abs(products[0]) == pytest.approx(float(np.abs(values * weights[1]).max()), rel=1e-5)
    rows.nth(3).get_by_role("button").focus()
    expect(found.locator(".edge.marked")).to_have_count(1)
    assert found.locator(".edge.marked").get_attribute("data-index") == rows.nth(3).get_attribute("data-index")


def test_an_edge_tells_its_weight(visit: Visit) -> None:
    page = visit.on(UNIT)
    found = view(page, "dense")
    edge = found.locator(".edge").nth(2)
    edge.dispatch_event("pointerenter")
    told = chip(page)
    assert str(int(told["index"])) == edge.get_attribute("data-index")
    assert written((edge.locator("title").text_content() or "").partition(": ")[2]) == pytest.approx(
        told["weight"], rel=1e-3
    )


def test_a_flattened_value_opens_the_unit_that_it_speaks_for(visit: Visit) -> None:
    page = visit.on("#model=tiny_vgg&image=espresso&view=dense&layer=flatten&unit=700")
    found = view(page, "dense")
    expect(page.locator("section.view h2")).to_have_text("output, unit espresso")
    expect(found.locator(".chip-line")).to_have_attribute("data-index", "700")


def test_units_without_maps_before_them_are_laid_in_rows(visit: Visit, served: Served) -> None:
    page = visit.on("#model=lecture_cnn&image=5&view=dense&layer=output&unit=5")
    found = view(page, "dense")
    expect(found.locator(".dense-grid canvas")).to_have_count(1)
    logits = maps(served, "lecture_cnn", "5", "output")
    assert named(found, "result") == pytest.approx(float(logits[5]), rel=1e-4)
    assert value(found.locator("output[data-name=activation]")) == pytest.approx(float(logits[5]), rel=1e-4)


def test_the_way_to_softmax_keeps_the_class(visit: Visit) -> None:
    page = visit.on(UNIT)
    view(page, "dense").get_by_role("button", name="On to softmax").click()
    view(page, "softmax")
    expect(page.locator("section.view h2")).to_have_text("softmax, score of espresso")
