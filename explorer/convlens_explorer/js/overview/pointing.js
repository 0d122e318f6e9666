/** Pointing at a unit, by mouse or focus: its edges, the units at their ends, its numbers; a click opens it. */

import { figure } from "../paint.js";
import { INPUT } from "../network.js";
import { t } from "../text.js";
import { viewFor } from "../views/index.js";

export class Pointing {
  /** @type {Element[]} */
  #marked = [];
  #current = "";

  /** @param {import("./overview.js").Overview} overview */
  constructor(overview) {
    this.overview = overview;
    const { scope } = overview.context;
    const { world } = overview;
    scope.listen(world, "pointermove", (event) => event.pointerType === "mouse" && this.#point(event));
    scope.listen(world, "pointerleave", () => this.clear());
    scope.listen(world, "focusin", (event) => event.target.matches(":focus-visible") && this.#focus(event.target));
    scope.listen(world, "focusout", () => this.clear());
    scope.listen(world, "click", (event) => this.#open(event));
  }

  /** Of an event or element: the node, the channel, and for a map the row and column under the pointer. */
  find(target, event) {
    const button = target.closest?.(".map");
    const view = button && this.overview.views.get(button.closest(".node").dataset.node);
    if (!view) return null;
    const canvas = event && event.target.closest("canvas");
    const image = Math.max(
      0,
      event
        ? [...button.querySelectorAll("canvas, .cell, .score")].indexOf(event.target.closest("canvas, .cell, .score"))
        : 0,
    );
    const found = { view, image, channel: Number(button.dataset.channel), row: undefined, column: undefined };
    if (!canvas) return found;
    const frame = canvas.getBoundingClientRect();
    const at = (size, start, extent, position) =>
      Math.min(size - 1, Math.max(0, Math.floor(((position - start) / extent) * size)));
    const row = at(canvas.height, frame.y, frame.height, event.clientY);
    if (view.shape === "strip") return { ...found, channel: row };
    return { ...found, row, column: at(canvas.width, frame.x, frame.width, event.clientX) };
  }

  clear() {
    for (const element of this.#marked) element.classList.remove("is-pointed", "is-source", "is-target");
    this.#marked = [];
    this.#current = "";
    this.overview.edges.clear();
    this.overview.chip.hide();
    this.overview.element.classList.remove("is-pointing");
  }

  #point(event) {
    const found = this.find(event.target, event);
    if (!found) return this.clear();
    this.#mark(found);
    return this.overview.chip.show(this.#tip(found), event.clientX, event.clientY);
  }

  #focus(target) {
    const found = this.find(target, null);
    if (!found) return;
    this.#mark(found);
    const frame = target.getBoundingClientRect();
    this.overview.chip.show(this.#tip(found), frame.right - 8, frame.bottom - 8);
  }

  #mark({ view, channel }) {
    const key = `${view.node.id} ${channel}`;
    if (key === this.#current) return;
    this.clear();
    this.#current = key;
    this.#class(view, channel, "is-pointed");
    for (const end of this.overview.edges.point(view, channel))
      this.#class(end.view, end.channel, end.way === "in" ? "is-source" : "is-target");
    this.overview.element.classList.add("is-pointing");
  }

  #class(view, channel, name) {
    const row = view.shape === "strip" ? view.rows[0] : view.rows[view.rowOf(channel)];
    if (!row) return;
    row.button.classList.add(name);
    this.#marked.push(row.button);
  }

  #tip({ view, image, channel, row, column }) {
    const { layer } = view.node;
    if (view.shape === "classes") return this.overview.classes?.tip(channel, image) ?? [];
    const name = layer.kind === INPUT ? t("overview.input") : layer.name;
    const planes = this.overview.planesOf(view, image);
    if (view.shape !== "maps") {
      const label = layer === view.network.logits ? view.network.labels[channel] : undefined;
      const head = t("overview.unitOf", { layer: name, channel: label ?? channel });
      return planes ? [head, figure(planes[0].values[channel], 4)] : [head];
    }
    const head = t("overview.channelOf", { layer: name, channel });
    const plane = planes?.[view.rowOf(channel)];
    if (!plane) return [head];
    const extent = t("overview.extent", { low: figure(plane.low), high: figure(plane.high) });
    if (row === undefined) return [head, extent];
    return [head, t("overview.valueAt", { row, column, value: figure(plane.at(row, column)) }), extent];
  }

  #open(event) {
    const found = this.find(event.target, event);
    if (!found || found.view.node.layer.kind === INPUT) return;
    const { view, channel, row, column } = found;
    const { layer } = view.node;
    // A key's click has no place on the map.
    const exact = event.detail > 0 && row !== undefined ? { row, column } : {};
    this.overview.context.store.go({ view: viewFor(layer), layer: layer.name, channel, ...exact });
  }
}
