/** Where views open: a sheet over the overview, with a way back. */

import { el, replace } from "../element.js";
import { later } from "../later.js";
import { t } from "../text.js";
import { parent, Unable, VIEWS } from "../views/index.js";

/** Until then it is better to say nothing than to say that one waits. */
const PATIENCE_MS = 400;

export class Host {
  /** What the open view gave: perhaps numbers to export. */
  handle = null;
  /** @type {import("../scope.js").Scope | null} */
  #scope = null;
  #shown = "";

  /**
   * @param {HTMLElement} container
   * @param {import("./context.js").Context} context
   * @param {import("../overview/overview.js").Overview} overview Lies below the sheet.
   */
  constructor(container, context, overview) {
    this.context = context;
    this.overview = overview;
    this.heading = el("h2", { tabindex: -1 });
    this.body = el("div.view-body");
    this.element = el(
      "section.view",
      { hidden: true },
      el(
        "header.view-head",
        {},
        el(
          "button.back",
          { type: "button", "aria-label": t("shell.back"), title: t("shell.back"), on: { click: () => this.back() } },
          "←",
        ),
        this.heading,
        el(
          "button.icon",
          {
            type: "button",
            id: "view-close",
            "aria-label": t("shell.close"),
            title: t("shell.close"),
            on: { click: () => context.store.go({}) },
          },
          "×",
        ),
      ),
      this.body,
    );
    container.append(this.element);
    const { store, scope } = context;
    store.subscribe(["place", "chosen", "scale", "images", "attempt"], () => this.#show(), scope);
    // A click on nothing leads back, unless it ended the marking of a text.
    scope.listen(this.element, "click", (event) => {
      if (event.target.matches(".view-body, .view-page, .view-content") && !getSelection()?.toString()) this.back();
    });
    this.#show();
  }

  get isOpen() {
    return !this.element.hidden;
  }

  /** One level back. */
  back() {
    const { store } = this.context;
    store.go(parent(store.get("place")));
  }

  #show() {
    const { store } = this.context;
    const { view, layer, channel } = store.get("place");
    const image = this.context.image();
    const known = view !== undefined && view in VIEWS;
    // What a view cannot follow by itself opens it anew.
    const key = known
      ? JSON.stringify([
          view,
          layer,
          channel,
          store.get("chosen"),
          Boolean(image),
          store.get("scale"),
          store.get("attempt"),
        ])
      : "";
    if (key === this.#shown) return;
    const before = this.#shown;
    this.#shown = key;
    this.#scope?.close();
    this.#scope = null;
    this.handle = null;
    this.element.hidden = !known;
    this.overview.element.inert = known;
    if (!known) {
      replace(this.body);
      if (before) this.#returnFocus(JSON.parse(before));
      return;
    }
    this.#open(view, !before);
  }

  async #open(view, first) {
    const scope = (this.#scope = this.context.scope.child());
    const context = { ...this.context, scope };
    const body = el("div.view-page", { dataset: { view } });
    // Until the next view stands, the last one stays, so that the page does not jump.
    this.body.setAttribute("aria-busy", "true");
    if (first) this.heading.textContent = "";
    let title = t("shell.view");
    const told = scope.after(PATIENCE_MS, () => (this.heading.textContent ||= t("shell.opening")));
    try {
      const module = await later(VIEWS[view], scope.signal);
      if (scope.closed) return;
      title = module.title(context);
      this.heading.textContent = title;
      this.element.setAttribute("aria-label", title);
      const opened = module.open(body, context);
      replace(this.body, body);
      if (first) this.heading.focus({ preventScroll: true });
      const handle = await opened;
      if (!scope.closed) this.handle = handle ?? null;
    } catch (error) {
      if (scope.closed || error?.name === "AbortError") return;
      this.heading.textContent = title;
      if (error instanceof Unable) return void replace(this.body, el("p.waiting", {}, error.message));
      replace(this.body, el("p.waiting", {}, t("shell.viewFailed", { message: error.message })));
      this.context.report(error);
    } finally {
      told();
      if (!scope.closed) this.body.removeAttribute("aria-busy");
    }
  }

  #returnFocus([, layer, channel]) {
    if (layer) this.overview.keys.focus(layer, channel ?? 0);
  }
}
