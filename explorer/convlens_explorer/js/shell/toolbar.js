/** Above the network: what it is, how it is coloured, how large it is seen, and what can be taken away. */

import { dimensions, short } from "../overview/details.js";
import { el, replace } from "../element.js";
import { icon } from "../icons.js";
import { figure } from "../paint.js";
import { t } from "../text.js";
import { exportMenu } from "./export_menu.js";

export class Toolbar {
  /** @type {import("../overview/overview.js").Overview | null} */
  #overview = null;

  /**
   * @param {import("../store.js").Store} store
   * @param {import("../scope.js").Scope} scope
   */
  constructor(store, scope) {
    this.store = store;
    this.facts = el("p.facts");
    this.answer = el("p.answer", { role: "status" });
    this.scale = el(
      "select",
      { id: "scale", on: { change: () => store.set({ scale: /** @type {any} */ (this.scale.value) }) } },
      ["unit", "module", "network"].map((name) => el("option", { value: name }, t(`shell.scale.${name}`))),
    );
    this.details = el(
      "button",
      { type: "button", id: "details", on: { click: () => store.set({ details: !store.get("details") }) } },
      t("shell.details"),
    );
    this.folds = el("button", { type: "button", id: "folds", hidden: true });
    this.sizes = el(
      "div.joined",
      { role: "group", "aria-label": t("shell.zoom") },
      this.#zoomButton("zoom-out", "−", () => this.#overview?.zoom.by(1 / 1.25)),
      this.#zoomButton("zoom-fit", icon("fit"), () => this.#overview?.zoom.fit()),
      this.#zoomButton("zoom-in", "+", () => this.#overview?.zoom.by(1.25)),
    );
    this.export = el("span");
    this.element = el(
      "div.toolbar",
      {},
      this.facts,
      this.answer,
      el(
        "div.controls",
        {},
        el("label", { title: t("shell.scaleLong") }, el("span", {}, t("shell.scale.title")), this.scale),
        this.details,
        this.folds,
        this.sizes,
        this.export,
      ),
    );
    store.subscribe(["scale", "details", "place"], () => this.#show(), scope);
    this.#show();
  }

  /**
   * @param {import("../overview/overview.js").Overview} overview
   * @param {import("./host.js").Host} host
   */
  attach(overview, host) {
    this.#overview = overview;
    overview.onBuild = () => this.#show();
    replace(this.export, exportMenu(overview, host));
    const { network } = overview.context;
    replace(
      this.facts,
      el("b", {}, network.model),
      ` ${t("shell.facts", {
        version: String(network.version),
        input: dimensions(network.input),
        classes: network.labels.length,
        layers: network.layers.length,
        parameters: short(network.parameters),
        device: network.device,
      })}`,
    );
    this.answer.textContent = "";
    this.#show();
  }

  /** @param {import("./context.js").Answer} answer */
  answered({ image, result, computeMs }) {
    const { network, store } = this.#overview?.context ?? {};
    if (!network || store.get("chosen")[0] !== image.id) return;
    const best = result.scores.indexOf(Math.max(...result.scores));
    replace(
      this.answer,
      t("shell.answer", {
        image: image.name,
        label: network.labels[best] ?? best,
        score: (100 * result.scores[best]).toFixed(1),
      }),
      el("span.quiet", {}, ` ${t("shell.took", { ms: figure(computeMs, 2) })}`),
    );
  }

  #zoomButton(id, sign, click) {
    return el(
      "button",
      { type: "button", id, "aria-label": t(`shell.${id}`), title: t(`shell.${id}`), on: { click } },
      sign,
    );
  }

  #show() {
    this.scale.value = this.store.get("scale");
    this.details.setAttribute("aria-pressed", String(this.store.get("details")));
    const overview = this.#overview;
    const open = Boolean(this.store.get("place").view);
    for (const control of [this.details, this.sizes]) control.hidden = open;
    const blocks = overview?.context.network.blocks.length ?? 0;
    this.folds.hidden = open || !blocks;
    if (!overview || !blocks) return;
    const unfold = overview.folded.size > 0;
    this.folds.textContent = t(unfold ? "shell.unfoldAll" : "shell.foldAll");
    this.folds.onclick = () => overview.foldAll(!unfold);
  }
}
