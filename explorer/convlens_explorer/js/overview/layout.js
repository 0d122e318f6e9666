/**
 * Where nodes stand. Lengths are CSS pixels at zoom 1.
 *
 * @typedef {object} Box Of a node.
 * @property {number} x
 * @property {number} y Top of its head.
 * @property {number} width
 * @property {number} content Of its rows, which may be narrower.
 * @property {number} headWidth
 * @property {number} height Head, rows and foot.
 * @property {number} top Top of its first row.
 * @property {number} rowsHeight Of all rows together.
 *
 * @typedef {object} Layout
 * @property {Map<string, Box>} boxes By node id.
 * @property {number} width
 * @property {number} height
 * @property {number} pitch From one row to the next.
 * @property {number} fit The zoom at which all of it, or at least its height, is seen.
 */

import { hasMaps } from "../network.js";
import { crown } from "./frames.js";

export const MAP = 56;
const ROW_GAP = 8;
const BETWEEN_IMAGES = 4;
const FOOT = 30;
const LEGEND = 40;
const MARGIN = 20;
const LANE_GAP = 34;
const NARROWEST_GAP = 34;
const WIDEST_GAP = 92;
const HEAD = 46;
const HEAD_WITH_DETAILS = 128;
const LEAST_FIT = 0.5;
const MOST_FIT = 1.25;
const WIDTHS = { strip: 30, cells: 30, classes: 216 };

/** How a node shows its values: "maps", "strip" (many units), "cells" (a few) or "classes". */
export function shapeOf(node, network) {
  if (node.layer === network.output) return "classes";
  if (hasMaps(node.layer)) return "maps";
  return node.layer.units > 64 ? "strip" : "cells";
}

/**
 * @param {import("./nodes.js").Node[]} nodes
 * @param {import("../network.js").Network} network
 * @param {{rows: number, images: number, details: boolean, room: {width: number, height: number}}} options `room`: what
 *   there is to see it in.
 * @returns {Layout}
 */
export function layOut(nodes, network, { rows, images, details, room }) {
  const head = details ? HEAD_WITH_DETAILS : HEAD;
  const pitch = MAP + ROW_GAP;
  const laneHeight = head + rows * pitch + FOOT + (details ? LEGEND : 0) + LANE_GAP;
  const lanes = Math.max(...nodes.map((node) => node.lane)) + 1;
  const start = Math.max(MARGIN, crown(network));
  const height = start + lanes * laneHeight - LANE_GAP + MARGIN;
  const widths = [];
  for (const node of nodes)
    widths[node.column] = Math.max(widths[node.column] ?? 0, widthOf(shapeOf(node, network), images, details));
  const filled = 2 * MARGIN + widths.reduce((sum, width) => sum + width, 0);
  const gaps = Math.max(1, widths.length - 1);
  const fit = zoomFor(room, filled + gaps * NARROWEST_GAP, height);
  const gap = Math.min(WIDEST_GAP, Math.max(NARROWEST_GAP, (room.width / fit - filled) / gaps));
  const lefts = [];
  let x = MARGIN;
  for (const width of widths) {
    lefts.push(x);
    x += width + gap;
  }
  const boxes = new Map();
  for (const node of nodes) {
    const shape = shapeOf(node, network);
    const width = widthOf(shape, images, details);
    const y = start + node.lane * laneHeight;
    boxes.set(node.id, {
      x: lefts[node.column] + (widths[node.column] - width) / 2,
      y,
      width,
      content: widthOf(shape, images, false),
      headWidth: Math.max(width, widths[node.column] + gap - 6),
      height: laneHeight - LANE_GAP,
      top: y + head,
      rowsHeight: rows * pitch - ROW_GAP,
    });
  }
  return { boxes, width: x - gap + MARGIN, height, pitch, fit };
}

/** All in sight if that is not much smaller than the whole height in sight, which comes first. */
function zoomFor(room, width, height) {
  const [across, down] = [room.width / width, room.height / height];
  const zoom = across > 0.7 * down ? Math.min(across, down) : down;
  return Math.min(MOST_FIT, Math.max(LEAST_FIT, zoom));
}

function widthOf(shape, images, details) {
  const each = shape === "maps" ? MAP : WIDTHS[shape];
  const width = images * each + (images - 1) * BETWEEN_IMAGES;
  // Details have to be readable, however narrow the values are.
  return details ? Math.max(width, 92) : width;
}
