/** Which channels of the layers before it a unit of a layer takes. */

import { channelsOf, hasMaps } from "../network.js";

// Kinds of which each unit takes all units before it.
const WHOLE = new Set(["dense", "softmax", "log_softmax", "layer_norm"]);

/**
 * @param {import("../network.js").Layer} source
 * @param {import("../network.js").Layer} target One that takes the source's output.
 * @param {import("../network.js").Network} network
 * @returns {(channel: number) => number[] | null} Gives the source's channels for one of the target's; null for all.
 */
export function connection(source, target, network) {
  const before = channelsOf(source);
  const after = channelsOf(target);
  if (target.kind === "conv") return convolution(before, after, target.groups || 1);
  if (WHOLE.has(target.kind)) return () => null;
  if (hasMaps(source) && !hasMaps(target)) {
    // Flattening goes through a map before it comes to the next.
    const size = after / before;
    return Number.isInteger(size) ? (channel) => [Math.floor(channel / size)] : () => null;
  }
  if (target.kind === "concat") {
    const first = startInConcat(source, target, network);
    return (channel) => (channel >= first && channel < first + before ? [channel - first] : []);
  }
  if (before === after) return (channel) => [channel];
  return before === 1 ? () => [0] : () => null;
}

function convolution(before, after, groups) {
  if (groups === 1) return () => null;
  const [sources, targets] = [before / groups, after / groups];
  return (channel) => {
    const group = Math.floor(channel / targets);
    return Array.from({ length: sources }, (_, i) => group * sources + i);
  };
}

function startInConcat(source, target, network) {
  let first = 0;
  for (const name of target.inputs) {
    if (name === source.name) break;
    first += channelsOf(network.layer(name));
  }
  return first;
}
