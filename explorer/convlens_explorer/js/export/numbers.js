/** The numbers of what is shown: the overview's exact values, or what a view gives. */

import { channelsOf } from "../network.js";

/**
 * @param {import("../overview/overview.js").Overview} overview
 * @param {AbortSignal} signal
 * @returns {Promise<Record<string, any>>} Layers in sight, whole and exact, for each image; scores and logits.
 */
export async function overviewNumbers(overview, signal) {
  const { network, maps } = overview.context;
  const images = overview.images;
  const numbers = {
    model: network.model,
    version: network.version,
    images: images.map(({ id }) => id),
    labels: network.labels,
  };
  const layers = [...overview.shownLayers()];
  for (const [i, image] of images.entries()) {
    const all = await Promise.all(layers.map((layer) => maps.units(image, layer, signal)));
    layers.forEach((layer, n) => {
      const shape = layer.shape.length ? layer.shape : [channelsOf(layer)];
      numbers[images.length > 1 ? `${i}/${layer.name}` : layer.name] = { shape, values: all[n] };
    });
  }
  return numbers;
}

/** Numbers as JSON: arrays nested by their shape. */
export function toJson(numbers) {
  return JSON.stringify(
    Object.fromEntries(Object.entries(numbers).map(([name, value]) => [name, isArray(value) ? nested(value) : value])),
    null,
    1,
  );
}

/** The arrays among numbers, as .npz has them; lists of numbers are arrays too. */
export function toArrays(numbers) {
  /** @type {Record<string, import("./npz.js").Numbers>} */
  const arrays = {};
  for (const [name, value] of Object.entries(numbers)) {
    if (isArray(value)) arrays[name] = value;
    else if (typeof value === "number") arrays[name] = { shape: [], values: Float64Array.of(value) };
    else if (Array.isArray(value) && value.every((item) => typeof item === "number"))
      arrays[name] = { shape: [value.length], values: Float64Array.from(value) };
  }
  return arrays;
}

function isArray(value) {
  return typeof value === "object" && value !== null && "shape" in value && "values" in value;
}

function nested({ shape, values }) {
  if (shape.length <= 1) return Array.from(values);
  const size = values.length / shape[0];
  return Array.from({ length: shape[0] }, (_, i) =>
    nested({ shape: shape.slice(1), values: values.slice(i * size, (i + 1) * size) }),
  );
}
