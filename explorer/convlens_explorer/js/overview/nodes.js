/**
 * What the overview draws of a network: a node for the image, for each layer, and for each block that is folded.
 *
 * @typedef {object} Node
 * @property {string} id The layer's name, or "block:" and the block's.
 * @property {import("../network.js").Layer} layer The one whose output it shows: of a block the last.
 * @property {import("../network.js").Block | null} block The folded block that it stands for.
 * @property {string[]} inputs Ids of the nodes before it.
 * @property {number} column
 * @property {number} lane 0 is the main way.
 */

import { INPUT } from "../network.js";

// A network with more layers begins with its blocks folded.
const MOST_UNFOLDED = 24;

/** Names of the blocks that are folded at first. */
export function foldedAtFirst(network) {
  if (network.layers.length <= MOST_UNFOLDED) return new Set();
  return new Set(network.blocks.map((block) => block.name));
}

/**
 * @param {import("../network.js").Network} network
 * @param {Set<string>} folded Names of blocks; what is inside a folded one is not looked at.
 * @returns {Node[]} In the order of computation, the image first.
 */
export function nodesOf(network, folded) {
  const home = homes(network, folded);
  /** @type {Map<string, Node>} */
  const nodes = new Map();
  nodes.set(INPUT, { id: INPUT, layer: network.input, block: null, inputs: [], column: 0, lane: 0 });
  for (const layer of network.layers) {
    const block = home.get(layer.name) ?? null;
    const id = block ? `block:${block.name}` : layer.name;
    const node = nodes.get(id) ?? { id, layer, block, inputs: [], column: 0, lane: 0 };
    node.layer = layer;
    for (const source of layer.inputs) {
      const from = home.has(source) ? `block:${home.get(source).name}` : source;
      if (from !== id && nodes.has(from) && !node.inputs.includes(from)) node.inputs.push(from);
    }
    nodes.set(id, node);
  }
  place(nodes);
  return [...nodes.values()];
}

/** Layer → the outermost folded block that it stands in. */
function homes(network, folded) {
  const home = new Map();
  for (const block of network.blocks) {
    if (!folded.has(block.name)) continue;
    for (const name of block.layers) if (!home.has(name)) home.set(name, block);
  }
  return home;
}

/** Columns by the longest way from the image; in a column each node has a lane of its own. */
function place(nodes) {
  const taken = new Set();
  for (const node of nodes.values()) {
    node.column = Math.max(-1, ...node.inputs.map((id) => nodes.get(id).column)) + 1;
    node.lane = node.block ? 0 : node.layer.lane;
    while (taken.has(`${node.column} ${node.lane}`)) node.lane++;
    taken.add(`${node.column} ${node.lane}`);
  }
}
