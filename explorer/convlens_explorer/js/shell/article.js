/** Where the explanation stands: beside the network, on a narrow screen over it. */

import { reached } from "../api.js";
import { el, replace } from "../element.js";
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
    store.subscribe(["article"], () => this.#show(), scope);
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
    const article = await reached(() => import("../article/article.js"));
    return scope.closed ? undefined : article.open(this.body, { ...this.#context, scope });
  }

  #close() {
    this.#scope?.close();
    this.#scope = null;
    replace(this.body);
  }
}
