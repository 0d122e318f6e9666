"""The view of softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
from playwright.sync_api import expect

from reading import maps, named, value, view, written
from support import Served
from visiting import Visit

UNIT = "#model=tiny_vgg&image=espresso&view=softmax&layer=softmax&unit=1"


def test_scores_are_recomputed_from_the_logits_on_the_page(visit: Visit, served: Served) -> None:
    page = visit.on(UNIT)
    found = view(page, "softmax")
    columns = {
        name: [value(one) for one in found.locator(f"tbody output[data-name={name}]").all()]
        for name in ("logit", "exponential", "score")
    }
    assert [len(column) for column in columns.values()] == [10, 10, 10]
    largest = max(columns["logit"])
    exponentials = [math.exp(logit - largest) for logit in columns["logit"]]
    assert columns["exponential"] == pytest.approx(exponentials, rel=1e-6)
    assert named(found, "sum") == pytest.approx(sum(exponentials), rel=1e-6)
    assert columns["score"] == pytest.approx([one / sum(exponentials) for one in exponentials], rel=1e-6)
    assert sum(columns["score"]) == pytest.approx(1)
    assert named(found, "result") == pytest.approx(columns["score"][1], rel=1e-6)
    assert named(found, "activation") == pytest.approx(named(found, "result"), rel=1e-4)
    np.testing.assert_allclose(columns["logit"], maps(served, "tiny_vgg", "espresso", "output"), rtol=1e-4, atol=1e-5)
    # The terms of the formula are the logits less the largest.
    terms = [written(one) for one in found.locator(".denominator .term span").all_inner_texts()]
    assert terms == pytest.approx([logit - largest for logit in columns["logit"]], abs=0.0051)


def test_a_class_and_its_term_light_each_other_up(visit: Visit) -> None:
    page = visit.on(UNIT)
    found = view(page, "softmax")
    row = found.locator("tr[data-index='4']")
    term = found.locator(".denominator .term[data-index='4']")
    row.locator("td").last.hover()
    expect(term).to_have_class("term lit")
    page.mouse.move(0, 0)
    expect(term).to_have_class("term")
    term.hover()
    expect(row).to_have_class("lit")
    found.locator("tr[data-index='6'] button.circle").focus()
    expect(found.locator(".denominator .term[data-index='6']")).to_have_class("term lit")


def test_a_logit_opens_the_unit_that_makes_it(visit: Visit) -> None:
    page = visit.on(UNIT)
    view(page, "softmax").get_by_role("button", name="Logit of koala").click()
    view(page, "dense")
    expect(page.locator("section.view h2")).to_have_text("output, unit koala")


def test_a_thousand_classes_are_paged_and_the_others_summed_up(visit_grown: Visit, grown: Served) -> None:
    page = visit_grown.on("#model=resnet18&image=pizza&view=softmax&layer=softmax&unit=3")
    found = view(page, "softmax")
    rows = found.locator("tbody tr")
    expect(rows).to_have_count(20)
    logits = maps(grown, "resnet18", "pizza", "fc").astype(np.float64)
    exponentials = np.exp(logits - logits.max())
    assert named(found, "sum") == pytest.approx(float(exponentials.sum()), rel=1e-4)
    assert named(found, "result") == pytest.approx(float(exponentials[3] / exponentials.sum()), rel=1e-4)
    shown = [value(one) for one in found.locator("tbody output[data-name=exponential]").all()]
    others = written(found.locator(".denominator").first.inner_text().rpartition("together ")[2])
    assert others == pytest.approx(float(exponentials.sum()) - sum(shown), abs=0.001)
    assert shown == sorted(shown, reverse=True)
    found.get_by_role("button", name="Next page").click()
    expect(found.locator(".pager span")).to_have_text("2 of 50")
