/** A map as numbers: a table of cells coloured by value, with a window that moves over it. */

import { takes } from "./arithmetic/geometry.js";
import { css, inkOn } from "./colours.js";
import { el, replace } from "./element.js";
import { onPointing } from "./pointing.js";
import { t } from "./text.js";

/** Cells along each axis that a table may show; a larger map is looked at through a part of it. */
const ZOOMS = [3, 5, 7, 9, 11, 15, 21];
/** Cells along each axis at first: what a phone, and what a desk has room for. */
const NARROW = 7;
const WIDE = 9;
/** @type {Array<[string, number, number]>} */
const EDGES = [
  ["edge-t", -1, 0],
  ["edge-b", 1, 0],
  ["edge-l", 0, -1],
  ["edge-r", 0, 1],
];
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/**
 * @typedef {object} Cell What one cell shows.
 * @property {string} text
 * @property {number} value Unrounded: what tests and copies read.
 * @property {number} share Where the value lies in the table of colours, 0 … 1.
 *
 * @typedef {{top: number, left: number, rows: number, columns: number, step: number[]}} Window As of windowAt.
 */

/** One matrix. */
export class Matrix {
  /**
   * @param {object} options
   * @param {import("./scope.js").Scope} options.scope
   * @param {string} options.label Says what it is to those who cannot see it.
   * @param {number[]} options.size Rows and columns.
   * @param {import("./colours.js").Table} options.table
   * @param {(row: number, column: number) => Cell} options.cell Only asked for cells inside.
   * @param {number[]} [options.padding] Top, left, bottom, right: cells of zeros that are shown around.
   * @param {string} [options.outside] What a cell in padding shows.
   * @param {number} [options.zoom] Cells along each axis at first.
   * @param {HTMLCanvasElement} [options.overview] The whole map; shown beside where the table has only a part.
   * @param {(row: number, column: number) => void} [options.onPoint] A cell was pointed at.
   * @param {(down: number, across: number) => void} [options.onMove] An arrow key was pressed.
   */
  constructor({
    scope,
    label,
    size,
    table,
    cell,
    padding = [0, 0, 0, 0],
    outside = "0",
    zoom = usual(),
    overview,
    onPoint,
    onMove,
  }) {
    this.size = size;
    this.colours = table;
    this.cell = cell;
    this.first = [-padding[0], -padding[1]];
    this.extent = [size[0] + padding[0] + padding[2], size[1] + padding[1] + padding[3]];
    this.outside = outside;
    this.zoom = zoom;
    this.origin = [...this.first];
    /** @type {Window | null} */
    this.window = null;
    this.body = el("tbody");
    this.table = el("table.matrix", { tabindex: onMove ? 0 : null, "aria-label": label }, this.body);
    this.frame = el("div.matrix-frame", {}, this.table);
    this.element = el("div.matrix-box", {}, this.frame);
    this.partial = this.extent.some((cells) => cells > zoom);
    if (this.partial) this.element.append(this.#tools(scope, overview, onPoint));
    this.#build();
    if (onPoint) this.#points(scope, onPoint);
    if (onMove) this.#keys(scope, onMove);
  }

  /** Moves the window; null takes it away. */
  show(window) {
    this.window = window;
    if (window && this.#follow(window)) this.#fill();
    this.#mark();
  }

  /** Shows values anew. */
  refresh() {
    this.#fill();
    this.#mark();
  }

  /** Rows and columns of the table. */
  get shown() {
    return this.extent.map((cells) => Math.min(cells, this.zoom));
  }

  #tools(scope, overview, onPoint) {
    const zoomBy = (steps) => () => this.#zoom(steps);
    this.nearer = el(
      "button.small",
      { type: "button", "aria-label": t("view.zoomIn"), on: { click: zoomBy(-1) } },
      "+",
    );
    this.farther = el(
      "button.small",
      { type: "button", "aria-label": t("view.zoomOut"), on: { click: zoomBy(1) } },
      "−",
    );
    this.part = el("span.matrix-part");
    const tools = el("div.matrix-tools", {}, this.nearer, this.farther);
    if (overview) {
      const mini = el("div.matrix-overview", { "aria-hidden": "true" }, overview, this.part);
      if (onPoint) {
        onPointing(scope, mini, (event) => this.#pointOverview(mini, event, onPoint));
      }
      tools.prepend(mini);
    }
    return tools;
  }

  #pointOverview(box, event, onPoint) {
    const { left, top, width, height } = box.getBoundingClientRect();
    const row = Math.floor(((event.clientY - top) / height) * this.size[0]);
    const column = Math.floor(((event.clientX - left) / width) * this.size[1]);
    onPoint(Math.min(this.size[0] - 1, Math.max(0, row)), Math.min(this.size[1] - 1, Math.max(0, column)));
  }

  #zoom(steps) {
    const now = ZOOMS.findIndex((cells) => cells >= this.zoom);
    this.zoom = ZOOMS[Math.min(ZOOMS.length - 1, Math.max(0, now + steps))];
    this.#build();
    if (this.window) this.#follow(this.window);
    this.refresh();
  }

  #build() {
    const [rows, columns] = this.shown;
    this.cells = Array.from({ length: rows * columns }, () => el("td"));
    replace(
      this.body,
      Array.from({ length: rows }, (_, row) => el("tr", {}, this.cells.slice(row * columns, (row + 1) * columns))),
    );
    this.table.style.setProperty("--columns", String(columns));
    this.table.classList.toggle("fine", columns > 11);
    this.#clamp();
    this.#fill();
    if (this.partial) {
      this.nearer.disabled = this.zoom === ZOOMS[0];
      this.farther.disabled =
        this.shown.every((cells, axis) => cells === this.extent[axis]) || this.zoom === ZOOMS.at(-1);
    }
  }

  /** Brings the window into the table. Whether the table had to move. */
  #follow(window) {
    const before = this.origin.join();
    [window.top, window.left].forEach((start, axis) => {
      const reach = ([window.rows, window.columns][axis] - 1) * window.step[axis] + 1;
      const cells = this.shown[axis];
      if (start >= this.origin[axis] && start + reach <= this.origin[axis] + cells) return;
      this.origin[axis] = start - Math.floor((cells - reach) / 2);
    });
    this.#clamp();
    return this.origin.join() !== before;
  }

  #clamp() {
    this.origin = this.origin.map((start, axis) => {
      const last = this.first[axis] + this.extent[axis] - this.shown[axis];
      return Math.min(last, Math.max(this.first[axis], start));
    });
  }

  #position(index) {
    const columns = this.shown[1];
    return [this.origin[0] + Math.floor(index / columns), this.origin[1] + (index % columns)];
  }

  #fill() {
    this.cells.forEach((box, index) => {
      const [row, column] = this.#position(index);
      const inside = row >= 0 && column >= 0 && row < this.size[0] && column < this.size[1];
      box.classList.toggle("padding", !inside);
      box.dataset.row = row;
      box.dataset.column = column;
      if (!inside) {
        box.textContent = this.outside;
        box.dataset.value = this.outside === "0" ? 0 : -Infinity;
        box.style.removeProperty("background-color");
        box.style.removeProperty("color");
        return;
      }
      const { text, value, share } = this.cell(row, column);
      box.textContent = text;
      box.dataset.value = value;
      box.style.backgroundColor = css(this.colours, share);
      box.style.color = inkOn(this.colours, share);
    });
    if (!this.partial) return;
    const [top, left] = this.origin.map((start, axis) => Math.max(0, start) / this.size[axis]);
    const [height, width] = this.shown.map((cells, axis) => Math.min(1, cells / this.size[axis]));
    Object.assign(this.part.style, {
      top: `${top * 100}%`,
      left: `${left * 100}%`,
      height: `${Math.min(height, 1 - top) * 100}%`,
      width: `${Math.min(width, 1 - left) * 100}%`,
    });
  }

  #mark() {
    const { window } = this;
    this.cells.forEach((box, index) => {
      const [row, column] = this.#position(index);
      const inside = window !== null && takes(window, row, column);
      box.classList.toggle("taken", inside);
      for (const [edge, down, across] of EDGES) {
        box.classList.toggle(edge, inside && !takes(window, row + down, column + across));
      }
    });
  }

  #points(scope, onPoint) {
    let last = null;
    onPointing(scope, this.body, (event) => {
      // A finger that moves on still reports the cell in which it came down.
      const box = document.elementFromPoint(event.clientX, event.clientY)?.closest("td");
      if (!box || !this.body.contains(box) || (box === last && event.type === "pointermove")) return;
      last = box;
      onPoint(Number(box.dataset.row), Number(box.dataset.column));
    });
  }

  #keys(scope, onMove) {
    scope.listen(this.table, "keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (ARROWS[event.key]) onMove(...ARROWS[event.key]);
      else if (this.partial && "+-".includes(event.key)) this.#zoom(event.key === "+" ? -1 : 1);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }
}

function usual() {
  return matchMedia("(max-width: 40rem)").matches ? NARROW : WIDE;
}
