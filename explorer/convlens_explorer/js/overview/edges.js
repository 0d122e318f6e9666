/** The edges between nodes: faint for all, strong for those of the unit that one points at. */

import { replace, svg } from "../element.js";
import { connection } from "./connections.js";
import { MAP } from "./layout.js";

// A strip of many units has edges at so many of them.
const STRIP_ENDS = 10;
// Lines of one pair of nodes; more would be a grey area that takes long to draw.
const MOST_LINES = 160;

export class Edges {
  #faint = svg("svg.edges.faint", { "aria-hidden": "true" });
  #strong = svg("svg.edges.strong", { "aria-hidden": "true" });
  /** Two pictures: pointing redraws the small one alone. */
  elements = [this.#faint, this.#strong];

  /** @param {import("../network.js").Network} network */
  constructor(network) {
    this.network = network;
  }

  /**
   * Draws all edges anew.
   * @param {Map<string, import("./node.js").NodeView>} views
   * @param {import("./layout.js").Layout} layout
   */
  draw(views, layout) {
    this.views = views;
    this.layout = layout;
    for (const element of this.elements) {
      element.setAttribute("width", String(layout.width));
      element.setAttribute("height", String(layout.height));
    }
    const paths = [];
    for (const view of views.values()) {
      for (const id of view.node.inputs) paths.push(svg("path", { d: this.#bundle(views.get(id), view) }));
    }
    replace(this.#faint, paths);
    this.clear();
  }

  /**
   * Draws a unit's edges strongly.
   * @returns {Array<{view: import("./node.js").NodeView, channel: number, way: "in" | "out"}>} The units at their ends.
   */
  point(view, channel) {
    const ends = [];
    const paths = [];
    const join = (source, target, way) => {
      const other = way === "in" ? source : target;
      const links = this.#links(source, target).filter(([from, to]) => (way === "in" ? to : from) === channel);
      // A strip has an end for the unit that one points at, whichever it is.
      const own = view.shape === "strip" ? this.#ofStrip(source, target, way, channel) : links;
      paths.push(svg(`path.${way}`, { d: own.map(([from, to]) => this.#line(source, from, target, to)).join("") }));
      for (const pair of own) ends.push({ view: other, channel: pair[way === "in" ? 0 : 1], way });
    };
    for (const id of view.node.inputs) join(this.views.get(id), view, "in");
    for (const target of this.views.values()) if (target.node.inputs.includes(view.node.id)) join(view, target, "out");
    replace(this.#strong, paths);
    return ends;
  }

  clear() {
    replace(this.#strong);
  }

  /** Pairs of channels that are joined, of those that are shown. A folded block hides how, so it has none. */
  #links(source, target) {
    if (target.node.block) return [];
    const takes = connection(source.node.layer, target.node.layer, this.network);
    const links = [];
    for (const to of ends(target)) {
      const channels = takes(to);
      for (const from of ends(source)) if (!channels || channels.includes(from)) links.push([from, to]);
    }
    return links;
  }

  #ofStrip(source, target, way, unit) {
    if (target.node.block) return [];
    const takes = connection(source.node.layer, target.node.layer, this.network);
    if (way === "in") {
      const channels = takes(unit);
      return ends(source)
        .filter((from) => !channels || channels.includes(from))
        .map((from) => [from, unit]);
    }
    const all = target.shape === "strip" && takes(unit)?.length === 1 ? [unit] : ends(target);
    return all.filter((to) => takes(to)?.includes(unit) ?? true).map((to) => [unit, to]);
  }

  #bundle(source, target) {
    const lines = this.#links(source, target).map(([from, to]) => this.#line(source, from, target, to));
    if (!lines.length) return this.#middle(source, target);
    const each = Math.ceil(lines.length / MOST_LINES);
    return lines.filter((_, i) => i % each === 0).join("");
  }

  #line(source, from, target, to) {
    const [x1, y1] = this.#end(source, from, "right");
    const [x2, y2] = this.#end(target, to, "left");
    return this.#curve(x1, y1, x2, y2, target.node.column - source.node.column);
  }

  #middle(source, target) {
    const [from, to] = [source, target].map((view) => this.layout.boxes.get(view.node.id));
    const [x1, x2] = [this.#side(from, "right"), this.#side(to, "left")];
    return this.#curve(
      x1,
      from.top + from.rowsHeight / 2,
      x2,
      to.top + to.rowsHeight / 2,
      target.node.column - source.node.column,
    );
  }

  #side(box, side) {
    const left = box.x + (box.width - box.content) / 2;
    return side === "left" ? left : left + box.content;
  }

  /** Past other nodes a line goes below them. */
  #curve(x1, y1, x2, y2, columns) {
    const bend = Math.min(60, (x2 - x1) / 2);
    const direct = `M${f(x1)} ${f(y1)}C${f(x1 + bend)} ${f(y1)} ${f(x2 - bend)} ${f(y2)} ${f(x2)} ${f(y2)}`;
    if (columns <= 1 || Math.abs(y1 - y2) > this.layout.pitch * 8) return direct;
    const low = Math.max(y1, y2) + this.layout.pitch / 2 - 1;
    const turn = 26;
    return (
      `M${f(x1)} ${f(y1)}C${f(x1 + turn)} ${f(y1)} ${f(x1)} ${f(low)} ${f(x1 + turn)} ${f(low)}` +
      `H${f(x2 - turn)}C${f(x2)} ${f(low)} ${f(x2 - turn)} ${f(y2)} ${f(x2)} ${f(y2)}`
    );
  }

  /** Where lines of a unit begin or end. */
  #end(view, channel, side) {
    const box = this.layout.boxes.get(view.node.id);
    const x = this.#side(box, side);
    if (view.shape === "strip") return [x, box.top + ((channel + 0.5) / view.count) * box.rowsHeight];
    return [x, box.top + view.rowOf(channel) * this.layout.pitch + MAP / 2];
  }
}

/** The channels of a node where edges end. */
function ends(view) {
  if (view.shape !== "strip") return view.rows.map((row) => row.channel);
  return Array.from({ length: STRIP_ENDS }, (_, i) => Math.floor(((i + 0.5) / STRIP_ENDS) * view.count));
}

function f(number) {
  return number.toFixed(1);
}
