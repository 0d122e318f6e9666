/** What several views are made of. */

import { fixed, placesFor, telling, whole } from "../arithmetic/format.js";
import { css } from "../colours.js";
import { el, replace } from "../element.js";
import { channelsOf, hasMaps } from "../network.js";
import { figure, paint } from "../paint.js";
import { onPointing } from "../pointing.js";
import { t } from "../text.js";

/** A map that a window moves over, and that can be uncovered cell by cell. */
export class MapBox {
  /**
   * @param {object} options
   * @param {import("../scope.js").Scope} options.scope
   * @param {string} options.label
   * @param {import("../plane.js").Plane} options.plane
   * @param {import("../colours.js").Table} options.table
   * @param {import("../paint.js").Range} options.range
   * @param {(row: number, column: number) => void} [options.onPoint]
   */
  constructor({ scope, label, plane, table, range, onPoint }) {
    this.plane = plane;
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.frame = el("span.map-window", { "aria-hidden": "true" });
    this.cover = el("span.map-cover", { "aria-hidden": "true" });
    this.element = el("div.map-box", {}, this.canvas, this.cover, this.frame);
    this.element.style.aspectRatio = `${plane.width} / ${plane.height}`;
    this.frame.hidden = this.cover.hidden = true;
    paint(this.canvas, plane, table, range);
    if (!onPoint) return;
    onPointing(scope, this.element, (event) => onPoint(...cellAt(this.element, event, plane)));
  }

  /** Draws a window's outline; null takes it away. @param {import("../matrix.js").Window | null} window */
  show(window) {
    this.frame.hidden = window === null;
    if (!window) return;
    const { height, width } = this.plane;
    const reach = (cells, step) => (cells - 1) * step + 1;
    const bottom = Math.min(height, window.top + reach(window.rows, window.step[0]));
    const right = Math.min(width, window.left + reach(window.columns, window.step[1]));
    const [top, left] = [Math.max(0, window.top), Math.max(0, window.left)];
    place(this.frame, top / height, left / width, (bottom - top) / height, (right - left) / width);
  }

  /**
   * Uncovers the cells before one, in reading order; null uncovers all.
   * @param {{row: number, column: number, rows: number, columns: number} | null} to The first that stays covered, of a
   *   grid of so many rows and columns.
   */
  uncover(to) {
    this.cover.hidden = to === null;
    if (!to) return;
    const down = (to.row / to.rows) * 100;
    const next = ((to.row + 1) / to.rows) * 100;
    const across = (to.column / to.columns) * 100;
    this.cover.style.clipPath = `polygon(${across}% ${down}%, 100% ${down}%, 100% 100%, 0 100%, 0 ${next}%, ${across}% ${next}%)`;
  }
}

/** The cell of a plane under a pointer. @returns {[number, number]} Row and column. */
export function cellAt(element, event, { height, width }) {
  const box = element.getBoundingClientRect();
  const cell = (at, start, extent, cells) =>
    Math.min(cells - 1, Math.max(0, Math.floor(((at - start) / extent) * cells)));
  return [cell(event.clientY, box.top, box.height, height), cell(event.clientX, box.left, box.width, width)];
}

function place(element, top, left, height, width) {
  Object.assign(element.style, {
    top: `${top * 100}%`,
    left: `${left * 100}%`,
    height: `${height * 100}%`,
    width: `${width * 100}%`,
  });
}

/** What a table's colours stand for. */
export function legend(name, table, { low, high }) {
  const stops = Array.from({ length: 9 }, (_, i) => css(table, i / 8)).join(", ");
  return el(
    "div.legend",
    { role: "img", "aria-label": t("view.legend", { name, low: figure(low), high: figure(high) }) },
    el("span.legend-name", {}, name),
    el("span.legend-low", {}, figure(low)),
    el("span.legend-bar", { style: { background: `linear-gradient(to right, ${stops})` } }),
    el("span.legend-high", {}, figure(high)),
  );
}

/** Where a value lies in a range, 0 … 1. */
export function shareOf(value, { low, high }) {
  return high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5;
}

/**
 * The choice of a channel or unit, with buttons to the neighbours.
 * @param {import("./index.js").Context} context
 * @param {import("../network.js").Layer} layer
 * @param {number} channel
 * @param {object} [options]
 * @param {string[]} [options.names] Of the channels; their numbers if there are none.
 * @param {(channel: number) => import("../store.js").Place} [options.placeOf] Where the choice leads, if not to the same
 *   place of another channel.
 */
export function channelPicker({ store }, layer, channel, { names, placeOf } = {}) {
  const count = channelsOf(layer);
  const word = t(names || !hasMaps(layer) ? "view.unit" : "view.channel");
  const same = (to) => ({ ...store.get("place"), channel: to });
  const go = (to) => store.go((placeOf ?? same)((to + count) % count));
  const step = (key, by, sign) =>
    el("button", { type: "button", "aria-label": t(key), on: { click: () => go(channel + by) } }, sign);
  const field = names
    ? el(
        "select",
        { "aria-label": word, on: { change: ({ target }) => go(Number(target.value)) } },
        names.map((name, index) => el("option", { value: index, selected: index === channel }, name)),
      )
    : el("input", {
        type: "number",
        min: 0,
        max: count - 1,
        value: channel,
        "aria-label": word,
        on: { change: ({ target }) => target.checkValidity() && target.value !== "" && go(Number(target.value)) },
      });
  return el(
    "div.picker",
    { role: "group", "aria-label": word },
    el("span", {}, names ? word : t("view.choice", { word, last: count - 1 })),
    step("view.previous", -1, "‹"),
    field,
    step("view.next", 1, "›"),
  );
}

/** Opens the article at a section. */
export function explainButton({ store }, section) {
  return el("button", { type: "button", on: { click: () => store.set({ article: section }) } }, t("view.explain"));
}

/** The page that a link's text names, of so many. @param {string | undefined} text @param {number} pages */
export function pageOf(text, pages) {
  return Math.min(pages - 1, Math.max(0, Number.parseInt(text ?? "", 10) || 0));
}

/** Buttons between pages; nothing where there is only one. */
export function pager(page, pages, onPage) {
  if (pages <= 1) return null;
  const button = (key, to, sign) =>
    el(
      "button",
      { type: "button", "aria-label": t(key), disabled: to < 0 || to >= pages, on: { click: () => onPage(to) } },
      sign,
    );
  return el(
    "div.pager",
    { role: "group", "aria-label": t("view.pages") },
    button("view.previousPage", page - 1, "‹"),
    el("span", {}, t("view.page", { page: page + 1, pages })),
    button("view.nextPage", page + 1, "›"),
  );
}

/**
 * The image as the network takes it, with preprocessing undone so that it can be recognised.
 * @param {import("../network.js").Network} network
 * @param {import("../plane.js").Plane[]} planes Of its channels.
 * @returns {HTMLCanvasElement} One pixel a value.
 */
export function picture(network, planes) {
  const [{ height, width }] = planes;
  const { mean, std, value_range: range } = network.manifest.input ?? {};
  const [low, high] = range ?? [0, 1];
  const image = new ImageData(width, height);
  for (let c = 0; c < 3; c++) {
    const from = planes.length === 1 ? 0 : c;
    const [shift, scale] = [mean?.[from] ?? 0, std?.[from] ?? 1];
    const { values } = planes[from];
    for (let i = 0; i < values.length; i++)
      image.data[4 * i + c] = ((values[i] * scale + shift - low) / (high - low)) * 255;
  }
  for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
  const canvas = el("canvas", { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The input image with a unit's receptive field drawn on it, and beside it the field enlarged. */
export class FieldBox {
  /** @param {import("../network.js").Network} network @param {import("../plane.js").Plane[]} planes Of the input. */
  constructor(network, planes) {
    this.size = planes[0];
    this.frame = el("span.map-window", { "aria-hidden": "true" });
    this.image = picture(network, planes);
    this.image.setAttribute("role", "img");
    this.image.setAttribute("aria-label", t("field.image"));
    this.part = /** @type {HTMLCanvasElement} */ (
      el("canvas.field-part", { role: "img", "aria-label": t("field.part"), hidden: true })
    );
    this.says = el("figcaption");
    const box = el("div.map-box", {}, this.image, this.frame);
    box.style.aspectRatio = `${this.size.width} / ${this.size.height}`;
    this.element = el("figure.field", {}, el("div.field-images", {}, box, this.part), this.says);
  }

  /** @param {{top: number, left: number, height: number, width: number}} field */
  show(field) {
    const { height, width } = this.size;
    const [top, left] = [Math.max(0, field.top), Math.max(0, field.left)];
    const bottom = Math.min(height, field.top + field.height);
    const right = Math.min(width, field.left + field.width);
    place(
      this.frame,
      top / height,
      left / width,
      Math.max(0, bottom - top) / height,
      Math.max(0, right - left) / width,
    );
    Object.assign(this.element.dataset, field);
    // A field of nearly the whole image says nothing new.
    this.part.hidden = field.height * field.width > (height * width) / 4;
    Object.assign(this.part, { height: field.height, width: field.width });
    this.part.getContext("2d").drawImage(this.image, -field.left, -field.top);
    const ends = {
      top: field.top,
      left: field.left,
      bottom: field.top + field.height - 1,
      right: field.left + field.width - 1,
    };
    const written = Object.fromEntries(Object.entries(ends).map(([name, value]) => [name, whole(value)]));
    replace(this.says, t("field.says", { height: field.height, width: field.width, ...written }));
  }
}

/** A plane as a matrix' cells. */
export function cellsOf(plane, range) {
  // Cells have room for three places.
  const places = Math.min(3, placesFor(Math.max(Math.abs(plane.low), Math.abs(plane.high))));
  return (row, column) => {
    const value = plane.at(row, column);
    return { text: fixed(value, places), value, share: shareOf(value, range) };
  };
}

/** A canvas of a whole plane. */
export function painted(plane, table, range) {
  const canvas = el("canvas");
  paint(canvas, plane, table, range);
  return canvas;
}

/** A number that is shown rounded and can be read unrounded. */
export function number(name, value, places = 4) {
  return el("output.number", { dataset: { name, value: String(value) } }, telling(value, places));
}
