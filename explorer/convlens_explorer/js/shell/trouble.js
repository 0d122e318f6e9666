/** Failures, in plain words on the page; and the way back by itself. */

import { ApiError } from "../api.js";
import { el, replace } from "../element.js";
import { ready } from "../session.js";
import { t } from "../text.js";

const RETRY_MS = 1000;

/** Errors of the request's image: they concern the image alone. */
const IMAGE_REASONS = new Set(["EMPTY_IMAGE", "NOT_AN_IMAGE", "TOO_MANY_PIXELS", "UNDECODABLE_IMAGE"]);

export class Trouble {
  #retrying = false;

  /**
   * @param {import("../store.js").Store} store Has the state `trouble`; `attempt` is raised when it is over.
   * @param {import("../scope.js").Scope} scope
   * @param {() => Promise<void>} refresh Asks for the models; throws while the server cannot be reached.
   */
  constructor(store, scope, refresh) {
    this.store = store;
    this.scope = scope;
    this.refresh = refresh;
  }

  /**
   * Takes any error: says it, and goes on trying where that helps.
   * @param {unknown} error
   * @returns {boolean} Whether it is the request's image that is wrong.
   */
  report(error) {
    if (error instanceof Error && error.name === "AbortError") return false;
    const trouble = this.#said(error);
    this.store.set({ trouble });
    if (!(error instanceof ApiError)) console.error(error);
    if (trouble.kind === "away" || trouble.kind === "model") this.#retry();
    return trouble.kind === "image";
  }

  /** The banner: what is wrong now. @param {import("../scope.js").Scope} scope */
  banner(scope) {
    const element = el("div.banner", { role: "alert" });
    const show = () => {
      const trouble = this.store.get("trouble");
      element.hidden = !trouble;
      element.dataset.kind = trouble?.kind ?? "";
      replace(
        element,
        trouble && el("span.banner-text", {}, t(trouble.key, trouble.values)),
        trouble &&
          el(
            "button.step",
            {
              type: "button",
              "aria-label": t("trouble.close"),
              on: { click: () => this.store.set({ trouble: null }) },
            },
            "×",
          ),
      );
    };
    this.store.subscribe(["trouble"], show, scope);
    show();
    return element;
  }

  #said(error) {
    if (!(error instanceof ApiError))
      return { kind: "error", key: "trouble.bug", values: { message: error?.message ?? String(error) } };
    if (error.code === "unreachable") return { kind: "away", key: "trouble.unreachable", values: {} };
    if (error.code === "unavailable") return { kind: "away", key: "trouble.unavailable", values: {} };
    if (IMAGE_REASONS.has(error.reason)) return { kind: "image", key: `trouble.${error.reason}`, values: {} };
    if (error.gone) {
      return { kind: "model", key: "trouble.gone", values: { model: this.store.get("model"), message: error.message } };
    }
    if (error.code === "resource_exhausted")
      return { kind: "error", key: "trouble.busy", values: { message: error.message } };
    return { kind: "error", key: "trouble.refused", values: { message: error.message } };
  }

  /** Asks again and again until the server answers and has the model, then lets all ask anew what they need. */
  async #retry() {
    if (this.#retrying) return;
    this.#retrying = true;
    for (;;) {
      await this.scope.pause(RETRY_MS);
      try {
        await this.refresh();
        if (!this.#back()) continue;
        break;
      } catch (error) {
        if (!(error instanceof ApiError)) {
          this.#retrying = false;
          throw error;
        }
        if (this.store.get("trouble")) this.store.set({ trouble: this.#said(error) });
      }
    }
    this.#retrying = false;
    this.store.set({ trouble: null, attempt: this.store.get("attempt") + 1 });
  }

  #back() {
    const model = this.store.get("model");
    const version = this.store.get("version");
    return this.store
      .get("models")
      .some((entry) => entry.model === model && (!version || entry.version === version) && ready(entry));
  }
}
