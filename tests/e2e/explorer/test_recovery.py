"""The server gone and back, and models that leave: the page says it in plain words, and goes on by itself."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import expect

from support import free_port, serving
from visiting import Visit, node, ready, unit

TINY = "#model=tiny_vgg&image=espresso"
# The page rests a second before it begins anew.
HASTE = """{
  const later = window.setTimeout;
  window.setTimeout = (callback, time, ...rest) => later(callback, time === 1000 ? 20 : time, ...rest);
}"""


@pytest.fixture
def models(repository, tmp_path):
    for name in ("tiny_vgg", "lecture_cnn"):
        shutil.copytree(repository / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def visit_at(browser):
    """Visits of a server that the test starts and ends; the browser itself complains of one that is away."""
    visits = []

    def start(url):
        visits.append(Visit(browser, url))
        return visits[-1]

    yield start
    for visit in visits:
        visit.leave(anew=True)


def test_the_server_gone_and_back(visit_at, models):
    port = free_port()
    with serving(models, http_port=port):
        visit = visit_at(f"http://127.0.0.1:{port}")
        page = visit(TINY)
    banner = page.get_by_role("alert")
    page.locator('[data-image="pizza"]').click()
    expect(banner).to_contain_text("The server does not answer")
    with serving(models, http_port=port):
        expect(banner).to_be_hidden()
        ready(page, "pizza")
        expect(node(page, "softmax").locator(".is-best .label")).to_have_text("pizza")
        unit(page, "conv_1_1", 0).click()
        page.wait_for_selector('.view [data-view="conv"]')


def test_a_page_that_is_opened_before_the_models_are_loaded(visit_at, models):
    port = free_port()
    with serving(models, http_port=port) as server:
        visit = visit_at(f"http://127.0.0.1:{port}")
        page = visit(TINY, wait=False)
        page.route("**/convlens.v1.ConvLens/*", lambda route: route.fulfill(status=503, json={"code": "unavailable"}))
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("starting or shutting down")
        page.unroute("**/convlens.v1.ConvLens/*")
        ready(page, "espresso")
        expect(page.get_by_role("alert")).to_be_hidden()
        assert server.http("/readyz")[0] == 200


def test_a_model_unloaded_while_it_is_shown(visit_at, models):
    with serving(models, model_control="explicit") as server:
        url = f"http://127.0.0.1:{server.state.http_port}"
        visit = visit_at(url)

        def control(what):
            with visit_at(url)._browser.new_context() as context:
                assert context.request.post(f"{url}/v2/repository/models/tiny_vgg/{what}").ok

        server.state.repository.load("lecture_cnn")
        server.state.repository.load("tiny_vgg")
        page = visit(TINY)
        control("unload")
        page.locator('[data-image="pizza"]').click()
        banner = page.get_by_role("alert")
        expect(banner).to_contain_text("The model tiny_vgg cannot answer now")
        control("load")
        ready(page, "pizza")
        expect(banner).to_be_hidden()
        control("unload")
        page.locator('[data-image="koala"]').click()
        expect(banner).to_contain_text("The model tiny_vgg cannot answer now")
        page.locator("#model").select_option("lecture_cnn")
        expect(node(page, "conv_1")).to_be_visible()
        ready(page)
        expect(banner).to_be_hidden()


def test_a_model_that_failed_says_why(visit_at, models):
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "model.onnx").write_bytes(b"no network")
    with serving(models) as server:
        visit = visit_at(f"http://127.0.0.1:{server.state.http_port}")
        page = visit("#model=broken", wait=False)
        expect(page.get_by_role("alert")).to_contain_text("The model broken cannot answer now")
        expect(page.locator("#model option").first).to_contain_text("failed")
        page.locator("#model").select_option("tiny_vgg")
        ready(page)
        expect(page.get_by_role("alert")).to_be_hidden()


def test_a_module_that_the_network_broke_off(visit_at, models):
    with serving(models) as server:
        page = visit_at(f"http://127.0.0.1:{server.state.http_port}")(TINY)
        page.route("**/explorer/js/shell/host.js", lambda route: route.abort())
        page.reload()
        page.wait_for_function("() => history.state?.begun")
        page.unroute("**/explorer/js/shell/host.js")
        ready(page, "espresso")


@pytest.mark.parametrize(
    ("module", "more", "shown"),
    [
        ("views/conv.js", "&view=conv&layer=conv_1_1&unit=0", '.view [data-view="conv"]'),
        ("article/article.js", "&read=convolution", "#article-convolution"),
    ],
)
def test_a_later_module_that_the_network_broke_off(visit_at, models, module, more, shown):
    with serving(models) as server:
        page = visit_at(f"http://127.0.0.1:{server.state.http_port}")(TINY)
        page.route(f"**/explorer/js/{module}", lambda route: route.abort())
        page.evaluate("hash => { location.hash = hash; }", f"{TINY}{more}")
        page.wait_for_function("() => history.state?.begun")
        page.unroute(f"**/explorer/js/{module}")
        page.wait_for_selector(shown)


def test_another_language_is_asked_for_while_the_server_is_away(visit_at, models):
    port = free_port()
    with serving(models, http_port=port):
        page = visit_at(f"http://127.0.0.1:{port}")(TINY)
    page.locator("#language").select_option("ja")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    # A theme asks nothing of the server.
    page.locator("#language").select_option("en")
    page.locator("#theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.locator("#language").select_option("ja")
    with serving(models, http_port=port):
        expect(page.locator("html")).to_have_attribute("lang", "ja")
        expect(page.get_by_role("alert")).to_be_hidden()


# All patience ends twenty times sooner.
IMPATIENT = "const timeout = AbortSignal.timeout; AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms / 20);"


def test_a_server_that_is_stuck(visit_at, models):
    with serving(models) as server:
        page = visit_at(f"http://127.0.0.1:{server.state.http_port}")(TINY)
        page.add_init_script(IMPATIENT)
        page.reload()
        ready(page)
        page.route("**/metrics", lambda route: None)
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
        page.unroute("**/metrics")
        expect(page.get_by_role("alert")).to_be_hidden()
        ready(page)


@pytest.mark.parametrize(
    ("module", "link", "place", "says"),
    [
        ("main.js", TINY, "body", "convlens cannot start: of its own"),
        ("views/conv.js", f"{TINY}&view=conv&layer=conv_1_1&unit=0", ".view-body", "of its own"),
    ],
)
def test_a_module_that_is_broken_does_not_load_the_page_for_ever(visit_at, models, module, link, place, says):
    with serving(models) as server:
        page = visit_at(f"http://127.0.0.1:{server.state.http_port}")(link)
        broken = {"content_type": "text/javascript", "body": "throw new TypeError('of its own')"}
        page.route(f"**/explorer/js/{module}", lambda route: route.fulfill(**broken))
        page.add_init_script(HASTE)
        page.reload()
        expect(page.locator(place)).to_contain_text(says, timeout=40_000)
        assert len(page.evaluate("history.state.begun")) == 5
        page.unroute(f"**/explorer/js/{module}")
        page.reload()
        ready(page)
