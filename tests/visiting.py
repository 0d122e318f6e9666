"""The explorer's page in a browser, as tests visit it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convlens.v1 import convlens_pb2 as pb
from support import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Request

# Generous: the tests' machine may be busy, and a test that waits for something that never comes still ends in time.
PATIENCE_MS = 15_000
_CHANGED = "ERR_NETWORK_CHANGED"
# As if one went back to the link. The page writes its address a little later than it changes, so the link may stand
# there already while the page is elsewhere.
_GO = """(link) => {
  history.replaceState(history.state, "", link);
  dispatchEvent(new PopStateEvent("popstate"));
}"""


class Visit:
    """Opens pages of a server: `page = visit("#model=tiny_vgg&image=espresso", color_scheme="dark")`.

    Attributes:
        url: Of the server.
        complaints: Errors and warnings of the pages' consoles, and requests to other hosts. A test that provokes some
            on purpose empties the list.
        hosts: Other hosts that the test lets its pages ask.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self.url = url
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self._browser = browser
        self._changed = False
        self._contexts: list[BrowserContext] = []
        self._shared: dict[str, Page] = {}
        self._left: dict[str, str] = {}

    def __call__(self, link: str = "", wait: bool = True, **options: Any) -> Page:
        """Opens a page in a browser context of its own.

        Args:
            link: What stands behind the server's address: "#model=…".
            wait: Whether to wait until the overview has all that it asked for.
            options: Of the browser context, as Playwright has them.
        """
        return self._open(link, wait, options)

    def on(self, link: str, **options: Any) -> Page:
        """Brings a page that the visit's tests share to a link; a tenth of a second where a new page takes one.

        For tests that change nothing but what a link holds, and what ends with a view.

        Args:
            link: As above; begins with the model and the image.
            options: Of the browser context: tests with the same ones share a page.
        """
        key = repr(sorted(options.items()))
        model, image = (part.partition("=")[2] for part in link.split("&")[:2])
        if key not in self._shared:
            self._shared[key] = self._open(link, True, options)
            self._contexts.remove(self._shared[key].context)
        self._left[key] = f"#model={model}&image={image}"
        page = self._shared[key]
        page.evaluate(_GO, link)
        page.wait_for_function("model => document.title.startsWith(`${model} ·`)", arg=model)
        self._wait(page, *image.split(","))
        return page

    def leave(self, anew: bool = False) -> list[str]:
        """Ends a test's visit: closes its pages, and leads those that are shared back to the network.

        Args:
            anew: Whether to close these too, for nobody knows what became of them.

        Returns:
            The complaints.
        """
        for context in self._contexts:
            context.close()
        self._contexts.clear()
        if anew:
            for page in self._shared.values():
                page.context.close()
            self._shared.clear()
        else:
            for key, link in self._left.items():
                self._shared[key].mouse.move(0, 0)
                self._shared[key].evaluate(_GO, link)
                self._shared[key].wait_for_selector("section.view", state="hidden")
        self._left.clear()
        self.hosts.clear()
        complaints, self.complaints = self.complaints, []
        return complaints

    def _open(self, link: str, wait: bool, options: dict[str, Any]) -> Page:
        defaults = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB"}
        context = self._browser.new_context(**{**defaults, **options})
        context.set_default_timeout(PATIENCE_MS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", self._request)
        page.goto(f"{self.url}/{link}")
        if wait:
            self._wait(page)
        return page

    def _wait(self, page: Page, *images: str) -> None:
        try:
            ready(page, *images)
        except Exception:
            # Chromium breaks off all it asks for when the machine gets or loses a network, as containers make them.
            if not self._changed:
                raise
            page.reload()
            ready(page, *images)

    def _console(self, message: ConsoleMessage) -> None:
        if _CHANGED in message.text:
            self._changed = True
        elif message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        scheme, _, rest = request.url.partition("://")
        host = rest.partition("/")[0]
        if scheme in ("http", "https") and f"{scheme}://{host}" != self.url and host not in self.hosts:
            self.complaints.append(f"asked another host: {request.url}")


def ready(page: Page, *images: str) -> None:
    """Waits until the overview shows all it asked for: of these images, if any are named."""
    shown = f'[data-shown="{" ".join(images)}"]' if images else ""
    page.wait_for_selector(f'.overview[data-state="ready"]{shown}', state="attached")


def node(page: Page, layer: str) -> Locator:
    """A layer's column in the overview."""
    return page.locator(f'.node[data-node="{layer}"]')


def unit(page: Page, layer: str, channel: int) -> Locator:
    """A map or unit in the overview."""
    return node(page, layer).locator(f'.map[data-channel="{channel}"]')


def place(page: Page) -> dict[str, str]:
    """What the page's address says, by name."""
    return dict(page.evaluate("[...new URLSearchParams(location.hash.slice(1))]"))


def scores(page: Page) -> list[float]:
    """The scores that the bars of the overview's last column show, by class; of a network with a softmax layer."""
    ready(page)
    bars = node(page, "softmax").locator(".score")
    return list(bars.evaluate_all("bars => bars.map((bar) => Number(bar.style.getPropertyValue('--score')))"))


def samples(served: Served, model: str) -> dict[str, bytes]:
    """A model's sample files, by name."""
    return {each.name: each.file for each in served.stub.GetSamples(pb.GetSamplesRequest(model=model)).samples}
