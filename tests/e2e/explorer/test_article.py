"""The explanation beside the network."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from reading import cells, point, view, written
from visiting import Visit

HOME = "#model=tiny_vgg&image=espresso"


def numbers(page: Page, section: str, name: str) -> list[list[float]]:
    """A matrix of a section's example, row by row."""
    table = page.locator(f"section[aria-labelledby=article-{section}]").get_by_role("table", name=name, exact=True)
    found = cells(table)
    width = int(found[:, 1].max()) + 1
    return found[:, 2].reshape(-1, width).tolist()


def test_it_computes_the_lectures_examples(visit: Visit) -> None:
    page = visit.on(f"{HOME}&read=convolution")
    expect(page.locator("#article-convolution")).to_be_in_viewport()
    assert numbers(page, "convolution", "Image") == [[0, 1, 1, 0, 1]] * 5
    assert numbers(page, "convolution", "Kernel") == [[1, 0, 1], [1, 1, 1], [0, 0, 1]]
    assert numbers(page, "convolution", "Result") == [[4, 3, 5]] * 3
    assert numbers(page, "pooling", "Result") == [[8, 2, 6], [2, 8, 9], [3, 3, 8]]
    summary = page.locator("table.summary")
    parameters = [
        int(cell.get_attribute("data-parameters") or -1) for cell in summary.locator("td[data-parameters]").all()
    ]
    assert parameters == [320, 18_496, 0, 0, 1_179_776, 1_290, 1_199_882]
    assert [written(cell) for cell in summary.locator("td[data-parameters]").all_inner_texts()] == parameters
    expect(page.locator("section[aria-labelledby=article-connections]")).to_contain_text("307,200")


def test_pointing_at_the_example_moves_its_window(visit: Visit) -> None:
    page = visit.on(f"{HOME}&read=pooling")
    section = page.locator("section[aria-labelledby=article-pooling]")
    point(page, section.get_by_role("table", name="Result").locator("td[data-row='1'][data-column='2']"), 0.5, 0.5)
    values = cells(section.get_by_role("table", name="Values"))
    assert sorted(values[values[:, 3] == 1, 2]) == [1, 4, 8, 9]


def test_layers_lead_to_the_article_and_the_article_to_layers(visit: Visit) -> None:
    page = visit.on(f"{HOME}&view=formula&layer=max_pool_1&unit=3,9,12")
    view(page, "formula").get_by_role("button", name="What is this?").click()
    expect(page.locator("#article-pooling")).to_be_in_viewport()
    page.locator("section[aria-labelledby=article-activation]").get_by_role("button", name="relu_2_1").click()
    expect(page.locator("section.view h2")).to_have_text("relu_2_1, channel 0")
    expect(page).to_have_url(re.compile("read=pooling.*layer=relu_2_1"))


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ["kernel", "pooling"]),
        ("ja", ["畳み込み", "カーネル", "プーリング", "全結合層", "活性化", "特徴マップ", "受容野"]),
    ],
)
def test_it_speaks_the_readers_language_with_the_lectures_terms(visit: Visit, language: str, words: list[str]) -> None:
    page = visit(f"{HOME}&read=network", locale=language)
    article = page.locator(".explanation")
    expect(article.locator("h3")).to_have_count(13)
    text = article.inner_text().lower()
    assert all(word in text for word in words)
    assert "undefined" not in text


def test_what_it_says_can_be_tried(visit: Visit) -> None:
    page = visit.on(f"{HOME}&read=convolution")
    page.locator("section[aria-labelledby=article-convolution]").get_by_role("button", name="Playground").click()
    view(page, "playground")
    expect(page.locator("#article-convolution")).to_be_visible()
