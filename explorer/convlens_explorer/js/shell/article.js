/** Where the explanation stands: beside the network, on a narrow screen over it. */

import { el, replace } from "../element.js";
import { later } from "../later.js";
import { t } from "../text.js";

export class Article {
  /** @type {import("../scope.js").Scope | null} */
  #scope = null;
  #context = null;

  /**
   * @param {import("../store.js").Store} store
   * @param {import("../scope.js").Scope} scope
   */
  constructor(store, scope) {
    this.store = store;
    this.scope = scope;
    this.body = el("div.article-body", { tabindex: 0 });
    this.element = el(
      "aside.article",
      { "aria-label": t("shell.explanation"), hidden: true },
      el(
        "header",
        {},
        el("h2", {}, t("shell.explanation")),
        el(
          "button.icon",
          {
            type: "button",
            id: "article-close",
            "aria-label": t("shell.close"),
            on: { click: () => store.set({ article: null }) },
          },
          "×",
        ),
      ),
      this.body,
    );
    store.subscribe(["article", "attempt"], () => this.#show(), scope);
  }

  /** Takes what the explanation is about. @param {import("./context.js").Context} context */
  attach(context) {
    this.#context = context;
    this.#close();
    this.#show();
  }

  async #show() {
    const open = this.store.get("article") !== null;
    this.element.hidden = !open;
    if (!open) return this.#close();
    if (this.#scope || !this.#context) return undefined;
    const scope = (this.#scope = this.scope.child());
    try {
      const article = await later(() => import("../article/article.js"), scope.signal);
      return scope.closed ? undefined : article.open(this.body, { ...this.#context, scope });
    } catch (error) {
      if (scope.closed) return undefined;
      this.#close();
      return this.#context.report(error);
    }
  }

  #close() {
    this.#scope?.close();
    this.#scope = null;
    replace(this.body);
  }
}
