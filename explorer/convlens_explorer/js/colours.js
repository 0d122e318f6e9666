/**
 * Colour scales, as tables of 256 colours from the lowest value to the highest: diverging red to blue for activations
 * (white, on a dark page black, is 0), greys for the input, brown to green for weights, oranges for logits and scores.
 *
 * @typedef {Uint32Array} Table 256 pixels as canvas' image data has them: R, G, B, A in memory's order.
 * @typedef {{activation: Table, input: Table, weight: Table, logit: Table}} Tables
 */

// Small activations are the many and the interesting ones: their colours are spread towards the middle's.
const SPREAD = { activation: 0.72, weight: 0.85 };

const STOPS = {
  light: {
    activation: ["#8f1022", "#c8433f", "#ec9274", "#fbd9c8", "#f7f7f5", "#cfe2ef", "#86b9d9", "#3b81b8", "#124a86"],
    input: ["#000000", "#ffffff"],
    weight: ["#6b3d06", "#a9742a", "#d9ba79", "#f3e7c9", "#f5f5f3", "#c9e8e2", "#78c4b6", "#27877c", "#014e45"],
    logit: ["#fff6ec", "#fee0be", "#fdbb7c", "#f98b41", "#dd5b0f", "#9f3703"],
  },
  dark: {
    activation: ["#ff9b84", "#ec5f4f", "#b13a39", "#5f2a2c", "#16191d", "#1f3b55", "#2c6c9f", "#4ba3dc", "#9ad4fb"],
    input: ["#000000", "#ffffff"],
    weight: ["#f0c274", "#c5913f", "#85602a", "#453722", "#171a1b", "#1d3f3b", "#28776d", "#45ad9f", "#93e2d3"],
    logit: ["#1d1814", "#4b2c15", "#86471a", "#c46a22", "#f4994a", "#ffd1a0"],
  },
};

/** @type {Record<string, Tables>} */
const made = {};

/**
 * The tables for a theme.
 * @param {"light" | "dark"} theme
 * @returns {Tables}
 */
export function tables(theme) {
  made[theme] ??= /** @type {Tables} */ (
    Object.fromEntries(
      Object.entries(STOPS[theme]).map(([name, stops]) => [name, interpolated(stops.map(parsed), SPREAD[name] ?? 1)]),
    )
  );
  return made[theme];
}

/** A colour of a table as CSS: `share` 0 is the lowest value, 1 the highest. */
export function css(table, share) {
  const pixel = table[Math.round(Math.min(1, Math.max(0, share)) * 255)];
  const [red, green, blue] = new Uint8Array(new Uint32Array([pixel]).buffer);
  return `rgb(${red} ${green} ${blue})`;
}

/** Black or white: whichever can be read on a table's colour. */
export function inkOn(table, share) {
  const pixel = table[Math.round(Math.min(1, Math.max(0, share)) * 255)];
  const [red, green, blue] = [...new Uint8Array(new Uint32Array([pixel]).buffer)].map((byte) => (byte / 255) ** 2.2);
  // Where black and white have the same contrast by WCAG's formula: luminance 0.179.
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

function parsed(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function interpolated(stops, spread) {
  const table = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(table.buffer);
  for (let i = 0; i < 256; i++) {
    const side = (i / 255) * 2 - 1;
    const share = spread === 1 ? i / 255 : (1 + Math.sign(side) * Math.abs(side) ** spread) / 2;
    const at = share * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = stops[left][c] + (stops[left + 1][c] - stops[left][c]) * (at - left);
    bytes[4 * i + 3] = 255;
  }
  return table;
}
