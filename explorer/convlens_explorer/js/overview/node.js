/** One node of the overview: its head, its rows, and the pager of a wide layer. */

import { css, inkOn } from "../colours.js";
import { el, replace } from "../element.js";
import { channelsOf, INPUT } from "../network.js";
import { figure, paint, share } from "../paint.js";
import { kindName, t } from "../text.js";
import { details } from "./details.js";
import { shapeOf } from "./layout.js";

const RGB = ["shell.red", "shell.green", "shell.blue"];

export class NodeView {
  /** Row → its elements. @type {Array<{channel: number, button: HTMLElement, pictures: HTMLElement[]}>} */
  rows = [];
  /** Of a strip, one for each image. @type {HTMLCanvasElement[]} */
  strips = [];
  page = 0;

  /**
   * @param {import("./nodes.js").Node} node
   * @param {import("../network.js").Network} network
   * @param {{rows: number, images: number, details: boolean}} options Rows of a page, images side by side.
   * @param {{name: () => void, unfold: () => void, page: () => void}} acts What its buttons do.
   */
  constructor(node, network, options, acts) {
    this.node = node;
    this.network = network;
    this.options = options;
    this.acts = acts;
    this.shape = shapeOf(node, network);
    this.count = channelsOf(node.layer);
    this.body = el("div.rows");
    this.pager = el("div.pages");
    this.element = el(
      `section.node.is-${this.shape}`,
      { "aria-label": this.#label(), dataset: { node: node.id, kind: node.layer.kind } },
      this.#head(),
      this.body,
      this.pager,
    );
    if (node.block) this.element.classList.add("is-block");
    this.showPage(0);
  }

  /** Takes its place. @param {import("./layout.js").Box} box */
  stand(box) {
    const { style } = this.element;
    style.transform = `translate(${box.x - (box.headWidth - box.width) / 2}px, ${box.y}px)`;
    for (const name of ["height", "content", "headWidth", "rowsHeight"])
      style.setProperty(`--${name}`, `${box[name]}px`);
  }

  /** The channels on its page; of a strip all. */
  get channels() {
    if (this.shape === "strip") return Array.from({ length: this.count }, (_, i) => i);
    const first = this.page * this.options.rows;
    return Array.from({ length: Math.min(this.options.rows, this.count - first) }, (_, i) => first + i);
  }

  get pages() {
    return this.shape === "strip" || this.shape === "classes" ? 1 : Math.ceil(this.count / this.options.rows);
  }

  /** Row of a channel, -1 if its page is not shown. */
  rowOf(channel) {
    return this.rows.findIndex((row) => row.channel === channel);
  }

  showPage(page) {
    this.page = Math.max(0, Math.min(page, this.pages - 1));
    if (this.shape === "strip") this.#makeStrip();
    else if (this.shape !== "classes") this.#makeRows();
    this.#makePager();
  }

  /**
   * Paints one image's planes: of maps one for each channel of the page, else one with all units.
   * @param {number} image Its place among those side by side.
   * @param {import("../plane.js").Plane[]} planes
   * @param {import("../colours.js").Table} table
   * @param {import("../paint.js").Range} range
   * @returns {number} Of canvases that got another size.
   */
  paint(image, planes, table, range) {
    if (this.shape === "strip") return Number(paint(this.strips[image], planes[0], table, range));
    let sized = 0;
    this.rows.forEach(({ channel, pictures }, i) => {
      if (this.shape === "maps") {
        const canvas = /** @type {HTMLCanvasElement} */ (pictures[image]);
        if (planes[i] && paint(canvas, planes[i], table, range)) sized++;
        return;
      }
      const value = planes[0].values[channel];
      const picture = pictures[image];
      picture.textContent = figure(value, 2);
      picture.style.setProperty("background", css(table, share(value, range)));
      picture.style.setProperty("color", inkOn(table, share(value, range)));
    });
    return sized;
  }

  #label() {
    const { layer, block } = this.node;
    const values = { name: layer.name, kind: kindName(layer.kind), count: this.count };
    if (block) return t("overview.blockLabel", { name: block.name, count: block.layers.length });
    return t(this.shape === "maps" ? "overview.layerLabel" : "overview.unitsLabel", values);
  }

  #head() {
    const { layer, block } = this.node;
    const name = layer.kind === INPUT ? t("overview.input") : this.#shortName();
    return el(
      "header.node-head",
      {},
      el(
        "button.node-name",
        {
          type: "button",
          title: `${block?.name ?? layer.name}: ${t(block ? "overview.unfold" : "overview.read")}`,
          on: { click: block ? this.acts.unfold : this.acts.name },
        },
        name,
      ),
      el("span.node-kind", {}, block ? t("overview.layers", { count: block.layers.length }) : kindName(layer.kind)),
      this.options.details && details(this.node),
    );
  }

  /** The name without what its block's frame says already. */
  #shortName() {
    const name = this.node.block?.name ?? this.node.layer.name;
    const frames = this.network.blocks
      .map((block) => block.name)
      .filter((block) => block !== name && name.startsWith(block));
    const longest = frames.sort((a, b) => b.length - a.length)[0] ?? "";
    return name.slice(longest.length).replace(/^[./_]+/, "") || name;
  }

  #makeRows() {
    this.rows = this.channels.map((channel) => {
      const pictures = Array.from({ length: this.options.images }, () =>
        el(this.shape === "maps" ? "canvas" : "span.cell"),
      );
      const button = el(
        "button.map",
        { type: "button", tabindex: -1, dataset: { channel } },
        el("span.unseen", {}, this.#unitLabel(channel)),
        pictures.map((picture) => [" ", picture]),
      );
      return { channel, button, pictures };
    });
    const note = this.node.layer.kind === INPUT && this.count === 3;
    replace(
      this.body,
      this.rows.map(({ button, channel }) =>
        note ? el("div.noted", {}, button, el("span.note", {}, t(RGB[channel]))) : button,
      ),
    );
  }

  #makeStrip() {
    this.strips = Array.from({ length: this.options.images }, () => /** @type {HTMLCanvasElement} */ (el("canvas")));
    const button = el(
      "button.map.column",
      { type: "button", tabindex: -1, "aria-label": this.#label(), dataset: { channel: 0 } },
      this.strips,
    );
    this.rows = [{ channel: 0, button, pictures: this.strips }];
    replace(this.body, button);
  }

  #unitLabel(channel) {
    const { layer } = this.node;
    if (layer.kind === INPUT && this.count === 3) return t("overview.inputChannel", { channel: t(RGB[channel]) });
    if (layer === this.network.logits) return t("overview.logit", { label: this.network.labels[channel] ?? channel });
    return t(this.shape === "maps" ? "overview.channelOf" : "overview.unitOf", { channel, layer: layer.name });
  }

  #makePager() {
    if (this.pages < 2) return replace(this.pager);
    const first = this.page * this.options.rows;
    const step = (by, key, sign) =>
      el(
        "button.step",
        {
          type: "button",
          "aria-label": t(key, { layer: this.node.layer.name }),
          disabled: this.page + by < 0 || this.page + by >= this.pages,
          on: { click: () => this.turn(by) },
        },
        sign,
      );
    return replace(
      this.pager,
      step(-1, "overview.previousPage", "‹"),
      el("span", {}, t("overview.page", { first: first + 1, last: first + this.channels.length, count: this.count })),
      step(1, "overview.nextPage", "›"),
    );
  }

  /** Turns over so many pages. */
  turn(by) {
    const hadFocus = this.element.contains(document.activeElement);
    this.showPage(this.page + by);
    this.acts.page();
    if (hadFocus) (this.pager.querySelector("button:not(:disabled)") ?? this.rows[0].button).focus();
  }
}
