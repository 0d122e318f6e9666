"""The comparison of two images, or two models."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from reading import maps, view
from support import Served
from visiting import Visit

HOME = "#model=tiny_vgg&image=espresso&view=compare"


def row(found: Locator, layer: str) -> dict[str, str]:
    line = found.locator(f"tr[data-layer='{layer}']")
    return {name: line.get_attribute(f"data-{name}") or "" for name in ("cosine", "difference", "cka")}


def test_two_images_are_compared_layer_by_layer(visit: Visit, served: Served) -> None:
    page = visit.on(f"{HOME}&with-with=image:koala")
    found = view(page, "compare")
    expect(found.locator("tbody tr")).to_have_count(13)
    one, other = (
        maps(served, "tiny_vgg", image, "conv_1_2").astype(np.float64).ravel() for image in ("espresso", "koala")
    )
    told = row(found, "conv_1_2")
    assert float(told["cosine"]) == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-4)
    assert float(told["difference"]) == pytest.approx(np.linalg.norm(other - one) / np.linalg.norm(one), rel=1e-3)
    assert told["cka"] == ""


def test_a_layer_shows_where_it_differs(visit: Visit, served: Served) -> None:
    page = visit.on(f"{HOME}&with-with=image:koala")
    found = view(page, "compare")
    found.get_by_role("button", name="conv_2_1").click()
    expect(found.locator(".compare-detail canvas")).to_have_count(10)
    one, other = (maps(served, "tiny_vgg", image, "conv_2_1") for image in ("espresso", "koala"))
    high = float(found.locator(".compare-detail .legend-high").inner_text())
    assert high == pytest.approx(float(np.abs(other - one).max()), rel=0.01)
    expect(found.locator("tr.chosen")).to_have_attribute("data-layer", "conv_2_1")


def test_two_models_are_compared_over_all_samples(visit: Visit) -> None:
    page = visit.on(f"{HOME}&with-with=model:tiny_vgg_bn:1")
    found = view(page, "compare")
    expect(found.get_by_role("combobox", name="With")).to_have_value("model:tiny_vgg_bn:1")
    expect(found.locator("tbody tr").first).to_be_visible()
    found.get_by_label("over all samples").check()
    expect(found.get_by_role("status").first).to_contain_text("over 10 images")
    for line in found.locator("tbody tr").all():
        assert 0 <= float(line.get_attribute("data-cka") or "nan") <= 1 + 1e-6


def test_models_that_have_no_layer_in_common_are_a_plain_sentence(visit: Visit) -> None:
    page = visit.on("#model=lecture_cnn&image=5&view=compare&with-with=model:tiny_vgg:1")
    expect(page.locator("section.view")).to_contain_text("layer")
