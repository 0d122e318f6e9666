/** Above the network: what it is, how it is coloured, how large it is seen, and what can be taken away. */

import { css } from "../colours.js";
import { dimensions, short } from "../overview/details.js";
import { el, replace } from "../element.js";
import { icon } from "../icons.js";
import { figure } from "../paint.js";
import { t } from "../text.js";
import { exportMenu } from "./export_menu.js";

/** Until then nothing is said of an answer that does not come. */
const PATIENCE_MS = 400;
/** Views whose colours share ranges as the overview's do. */
const SCALED = new Set([undefined, "conv", "formula"]);

export class Toolbar {
  /** @type {import("../overview/overview.js").Overview | null} */
  #overview = null;
  #late = () => {};
  /** Id of the image whose answer stands there. */
  #told = "";

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
    this.key = el("span.colour-key", { role: "img", "aria-label": t("shell.colourKey"), title: t("shell.colourKey") });
    this.label = el("label", { title: t("shell.scaleLong") }, el("span", {}, t("shell.scale.title")), this.scale);
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
      el("div.controls", {}, this.label, this.key, this.details, this.folds, this.sizes, this.export),
    );
    store.subscribe(["scale", "details", "place"], () => this.#show(), scope);
    store.subscribe(["chosen", "network"], () => this.#await(scope), scope);
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
    const facts = t("shell.facts", {
      version: String(network.version),
      input: dimensions(network.input),
      classes: network.labels.length,
      layers: network.layers.length,
      parameters: short(network.parameters),
      device: network.device,
    });
    replace(this.facts, el("b", {}, network.model), ` ${facts}`);
    // There is not always room for all of it.
    this.facts.title = facts;
    this.answer.textContent = "";
    this.#told = "";
    const colours = Array.from({ length: 9 }, (_, i) => css(overview.context.tables.activation, i / 8));
    replace(
      this.key,
      "−",
      el("span", { style: { background: `linear-gradient(to right, ${colours.join(", ")})` } }),
      "+",
    );
    this.#show();
  }

  /** @param {import("./context.js").Answer} answer */
  answered({ image, result, computeMs }) {
    const { network, store } = this.#overview?.context ?? {};
    if (!network || store.get("chosen")[0] !== image.id) return;
    this.#late();
    this.#told = image.id;
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

  /** What stands there may be the last image's answer: it goes when the new one's does not come soon. */
  #await(scope) {
    this.#late();
    this.#late = scope.after(PATIENCE_MS, () => {
      const [first] = this.store.get("chosen");
      // The same image may not be asked about again, as where only those beside it change.
      if (first === this.#told) return;
      this.#told = "";
      const image = this.store.get("images").find(({ id }) => id === first);
      this.answer.textContent = image ? t("shell.noAnswer", { image: image.name }) : "";
    });
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
    const { view } = this.store.get("place");
    const open = Boolean(view);
    for (const control of [this.key, this.label]) control.hidden = !SCALED.has(view);
    for (const control of [this.details, this.sizes]) control.hidden = open;
    const blocks = overview?.context.network.blocks.length ?? 0;
    this.folds.hidden = open || !blocks;
    if (!overview || !blocks) return;
    const unfold = overview.folded.size > 0;
    this.folds.textContent = t(unfold ? "shell.unfoldAll" : "shell.foldAll");
    this.folds.onclick = () => overview.foldAll(!unfold);
  }
}
