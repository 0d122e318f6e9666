/**
 * The views that open from the overview, each loaded when it is first opened.
 *
 * @typedef {object} Context What a view works with.
 * @property {import("../store.js").Store} store A view follows `row`, `column` and `options` of its place; the host
 *   opens it anew for all else that changes.
 * @property {import("../scope.js").Scope} scope Ends with the view.
 * @property {import("../network.js").Network} network
 * @property {import("../maps.js").Maps} maps
 * @property {import("../ranges.js").Ranges} ranges
 * @property {import("../colours.js").Tables} tables Of the theme.
 * @property {() => import("../images.js").PageImage | null} image The current image.
 * @property {(error: unknown) => void} report Takes failures that concern the whole page: the server is away, the model
 *   gone. When they are over, the host opens the view anew.
 *
 * @typedef {object} View
 * @property {(context: Context) => string} title
 * @property {(container: HTMLElement, context: Context) => any} open May give a promise, of {numbers(): object} or nothing.
 */

import { hasMaps } from "../network.js";

/** Why a view shows nothing, in words for its reader: there is no image, or no such layer. */
export class Unable extends Error {}

/** @type {Record<string, () => Promise<View>>} */
export const VIEWS = {
  conv: () => import("./conv.js"),
  formula: () => import("./formula.js"),
  dense: () => import("./dense.js"),
  softmax: () => import("./softmax.js"),
  playground: () => import("./playground.js"),
  attribution: () => import("./attribution.js"),
  compare: () => import("./compare.js"),
  maximizing: () => import("./maximizing.js"),
};

/** Views of no layer, in the order of their buttons; the text of each is `view.open.<name>`. */
export const TOOLS = ["attribution", "compare", "playground"];

/**
 * The view that a click on a layer's map or unit opens.
 * @param {import("../network.js").Layer} layer
 */
export function viewFor(layer) {
  if (layer.kind === "softmax") return "softmax";
  if (layer.kind === "conv" && hasMaps(layer)) return "conv";
  return layer.kind === "dense" || layer.kind === "flatten" ? "dense" : "formula";
}

/**
 * Where one level back leads: from a convolution's arithmetic to its maps, from all else to the overview.
 * @param {import("../store.js").Place} place
 * @returns {import("../store.js").Place}
 */
export function parent({ view, layer, channel, row, column, options }) {
  if (view === "maximizing" || (view === "formula" && options?.input !== undefined)) {
    return { view: view === "formula" ? "conv" : options?.from, layer, channel, row, column };
  }
  return {};
}
