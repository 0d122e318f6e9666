/**
 * The images that activate a channel most.
 *
 * @typedef {object} Found One of them.
 * @property {string} file
 * @property {number} activation
 * @property {number} row
 * @property {number} column
 * @property {{top: number, left: number, height: number, width: number}} field What the unit sees.
 * @property {string} url Of the image.
 */

import { stream } from "../api.js";
import { el, replace } from "../element.js";
import { figure } from "../paint.js";
import { t } from "../text.js";
import { drawnAnew } from "./anew.js";
import { saying, unitOf } from "./asking.js";
import { channelPicker } from "./parts.js";

const IMAGES = 9;
/** The model's own samples: every server has them. */
const SAMPLES = "samples";

export function title(context) {
  const { name, channel } = unitOf(context);
  return t("maximizing.titleOf", { layer: name, channel });
}

/** @param {HTMLElement} container @param {import("./index.js").Context} context */
export function open(container, context) {
  return drawnAnew(container, context, ["dataset"], draw);
}

async function draw(container, context) {
  const { store, scope, network } = context;
  const { layer, name, channel, options } = unitOf(context);
  const dataset = options.dataset ?? SAMPLES;
  const progress = el("progress", { max: 1, "aria-label": t("maximizing.progress") });
  const says = el("div", { role: "status" }, t("maximizing.waiting"));
  const grid = el("div.maximizing");
  const field = el("input", {
    type: "text",
    value: dataset,
    "aria-label": t("maximizing.dataset"),
    spellcheck: "false",
  });
  const form = el("label.setting", {}, el("span", {}, t("maximizing.dataset")), field);
  scope.listen(field, "change", () =>
    store.go({ ...store.get("place"), options: { ...options, dataset: field.value.trim() } }),
  );
  /** @type {Found[]} */
  let images = [];
  container.append(
    el("p.lead", {}, t("maximizing.lead")),
    el("div.view-bar", {}, channelPicker(context, layer, channel), form),
    progress,
    says,
    grid,
  );
  const take = (message) => {
    if (message.progress) {
      const { done = 0, total = 0, skipped = 0 } = message.progress;
      progress.max = total || 1;
      progress.value = done;
      replace(says, t(skipped ? "maximizing.doneSkipping" : "maximizing.done", { done, total, skipped }));
    } else {
      images = (message.channel.images ?? []).map(read);
      replace(
        grid,
        images.map((image) => card(network, image)),
      );
      replace(says, t("maximizing.found", { count: images.length }));
    }
  };
  const body = {
    model: network.model,
    version: network.version,
    layer: name,
    channels: [channel],
    dataset,
    count: IMAGES,
    includeImages: true,
  };
  // Not waited for: the first who asks may have to wait for a whole dataset, and sees how far it is.
  stream("MaximizingImages", body, take, { signal: scope.signal })
    .catch(saying(context, says))
    .finally(() => (progress.hidden = true));
  return {
    numbers: () => ({ layer: name, channel, dataset, images: images.map(({ url: _, ...image }) => image) }),
  };
}

/** @param {any} image MaximizingImage @returns {Found} */
function read({ file = "", activation = 0, row = 0, column = 0, receptiveField = {}, image = "" }) {
  const { top = 0, left = 0, height = 0, width = 0 } = receptiveField;
  return {
    file,
    activation: Number(activation),
    row,
    column,
    field: { top, left, height, width },
    url: `data:image/png;base64,${image}`,
  };
}

function card(network, { file, activation, row, column, field, url }) {
  const [top, left] = [Math.max(0, field.top), Math.max(0, field.left)];
  const bottom = Math.min(network.height, field.top + field.height);
  const right = Math.min(network.width, field.left + field.width);
  const frame = el("span.map-window", {
    "aria-hidden": "true",
    style: {
      top: `${(top / network.height) * 100}%`,
      left: `${(left / network.width) * 100}%`,
      height: `${(Math.max(0, bottom - top) / network.height) * 100}%`,
      width: `${(Math.max(0, right - left) / network.width) * 100}%`,
    },
  });
  const picture = el("img", { src: url, alt: file, width: network.width, height: network.height });
  return el(
    "figure",
    { dataset: { activation, row, column } },
    el("div.map-box", {}, picture, frame),
    el(
      "figcaption",
      {},
      el("b", {}, figure(activation, 4)),
      " ",
      t("maximizing.at", { row, column }),
      el("small", {}, file),
    ),
  );
}
