"""The numbers of the views, saved: what they show can be recomputed from the file."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page

from reading import view
from visiting import Visit

HOME = "#model=tiny_vgg&image=espresso"


def saved(page: Page, name: str, options: str, ending: str = "json") -> Any:
    """Opens a view and saves its numbers."""
    page.evaluate("hash => (location.hash = hash)", f"{HOME}&view={name}{options}")
    view(page, name)
    page.wait_for_selector(".view-body:not([aria-busy])")
    page.locator("#export").click()
    with page.expect_download() as download:
        page.locator(f"#export-{ending}").click()
    content = download.value.path().read_bytes()
    return json.loads(content) if ending == "json" else np.load(io.BytesIO(content))


def test_the_numbers_of_every_view_can_be_saved(visit: Visit) -> None:
    page = visit(HOME, reduced_motion="reduce")

    conv = saved(page, "conv", "&layer=conv_1_1&unit=3", "npz")
    assert conv["kernels"].shape == (3, 3, 3)
    total = conv["intermediates"].sum(0) + conv["bias"]
    np.testing.assert_allclose(total, conv["output"][0], rtol=1e-3, atol=1e-4)

    pool = saved(page, "formula", "&layer=max_pool_1&unit=3,1,1")
    inputs = np.array(pool["relu_1_2, channel 3"])
    assert inputs.shape == (60, 60)
    np.testing.assert_array_equal(inputs.reshape(30, 2, 30, 2).max((1, 3)), pool["output"])

    dense = saved(page, "dense", "&layer=output&unit=1")
    assert dense["result"] == pytest.approx(np.dot(dense["values"], dense["weights"]) + dense["bias"], rel=1e-5)

    softmax = saved(page, "softmax", "&layer=softmax&unit=1")
    largest = max(softmax["logits"])
    exponentials = [math.exp(logit - largest) for logit in softmax["logits"]]
    assert softmax["result"] == pytest.approx(exponentials[1] / sum(exponentials), rel=1e-6)

    assert saved(page, "playground", "&with-input=9&with-padding=1&with-stride=2")["output"] == 5

    with page.expect_response("**/Attribute"):
        page.evaluate("hash => (location.hash = hash)", f"{HOME}&view=attribution")
    page.wait_for_selector(".attribution-stage[data-method=occlusion]")
    attribution = saved(page, "attribution", "")
    assert np.array(attribution["map"]).shape == (64, 64)
    assert attribution["label"] == "espresso"

    compare = saved(page, "compare", "&with-with=image:koala")
    assert [layer["name"] for layer in compare["layers"]][:2] == ["conv_1_1", "relu_1_1"]

    page.evaluate("hash => (location.hash = hash)", f"{HOME}&view=maximizing&layer=conv_2_1&unit=2")
    page.wait_for_selector(".maximizing figure")
    maximizing = saved(page, "maximizing", "&layer=conv_2_1&unit=2")
    assert len(maximizing["images"]) == 9
