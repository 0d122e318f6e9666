/** Where in the image a class's score comes from. */

import { call } from "../api.js";
import { percent } from "../arithmetic/format.js";
import { el, replace } from "../element.js";
import { hasMaps } from "../network.js";
import { figure, index, symmetric } from "../paint.js";
import { Plane } from "../plane.js";
import { onPointing } from "../pointing.js";
import { t } from "../text.js";
import { fromBase64 } from "../wire.js";
import { Asking, newest, saying } from "./asking.js";
import { cellAt, explainButton, legend, picture } from "./parts.js";

const METHODS = ["occlusion", "score_cam", "eigen_cam", "grad_cam"];

export function title() {
  return t("attribution.title");
}

/** @param {HTMLElement} container @param {import("./index.js").Context} context */
export async function open(container, context) {
  const { store, scope, network, tables } = context;
  const asking = new Asking(context);
  const planes = await asking.planes(network.input, network.input.shape[0] === 1 ? [0] : [0, 1, 2]);
  const fields = controls(context);
  const says = el("div.attribution-says", { role: "status" });
  const say = saying(context, says);
  const chip = el("p.chip-line", {}, t("attribution.hover"));
  const key = el("div.legends");
  const { box, heat } = layers(network, planes);
  box.classList.add("attribution-image");
  const all = el("div.attribution-all", { role: "status" });
  const stage = el("div.attribution-stage", {}, box, el("div", {}, says, chip, key, all));
  let shown = null;
  let asked = "";
  let askedAll = "";
  let run = scope.child();

  const ask = newest(
    async (options) => {
      const { method } = options;
      box.setAttribute("aria-busy", "true");
      try {
        shown = await attributed(asking, options, tables, scope.signal);
      } finally {
        box.removeAttribute("aria-busy");
      }
      lay(heat, shown);
      stage.dataset.method = method;
      replace(says, sentence(shown));
      replace(
        key,
        legend(t(method === "occlusion" ? "attribution.fall" : "attribution.weight"), shown.table, shown.range),
      );
    },
    (error) => {
      shown = null;
      heat.getContext("2d").clearRect(0, 0, heat.width, heat.height);
      replace(key);
      say(error);
    },
  );
  /** Asks for one method after the other: on a large network each may take seconds. */
  const askAll = async (options) => {
    const { signal } = run;
    for (const method of METHODS) {
      try {
        const found = await attributed(asking, { ...options, method }, tables, signal);
        const small = layers(network, planes);
        lay(small.heat, found);
        all.append(
          el(
            "button.method",
            {
              type: "button",
              "aria-label": t("attribution.choose", { method: t(`attribution.${method}`) }),
              on: { click: () => fields.go({ method }) },
            },
            small.box,
            el("span", {}, t(`attribution.${method}`)),
          ),
        );
      } catch (error) {
        if (signal.aborted) return;
        const why = el("div.method");
        all.append(why);
        saying(context, why)(error);
      }
    }
  };
  const follow = () => {
    if (store.get("place").view !== "attribution") return;
    const options = optionsOf(store);
    fields.show(options);
    stage.style.setProperty("--opacity", String(options.opacity / 100));
    const questions = options.all ? JSON.stringify([options.classIndex, options.layer]) : "";
    if (questions !== askedAll) {
      askedAll = questions;
      run.close();
      run = scope.child();
      replace(all);
      if (options.all) askAll(options);
    }
    const question = JSON.stringify([options.method, options.classIndex, options.layer]);
    if (question === asked) return;
    asked = question;
    ask(options);
  };
  onPointing(scope, box, (event) => {
    if (!shown) return;
    const [row, column] = cellAt(box, event, shown.plane);
    const value = shown.plane.at(row, column);
    Object.assign(chip.dataset, { row, column, value });
    replace(chip, t("attribution.at", { row, column, value: figure(value, 4) }));
  });
  store.subscribe(["place"], follow, scope);
  container.append(el("p.lead", {}, t("attribution.lead")), fields.element, stage);
  follow();
  return {
    numbers: () => ({
      ...optionsOf(store),
      ...(shown && {
        map: { shape: [shown.plane.height, shown.plane.width], values: shown.plane.values },
        label: shown.prediction.label,
        score: shown.prediction.score,
      }),
    }),
  };
}

function optionsOf(store) {
  const { method, class: classIndex = "", layer = "", opacity = "70", all = "" } = store.get("place").options ?? {};
  return {
    method: METHODS.includes(method) ? method : METHODS[0],
    classIndex,
    layer,
    opacity: Math.min(100, Math.max(0, Number.parseInt(opacity, 10) || 0)),
    all: all === "1",
  };
}

function controls(context) {
  const { store, network } = context;
  const go = (change) => store.go({ view: "attribution", options: { ...store.get("place").options, ...change } });
  const choice = (name, options) => {
    const field = el(
      "select",
      { on: { change: ({ target }) => go({ [name]: target.value }) } },
      options.map(([value, text]) => el("option", { value }, text)),
    );
    return { field, element: el("label.setting", {}, el("span", {}, t(`attribution.${name}`)), field) };
  };
  const method = choice(
    "method",
    METHODS.map((value) => [value, t(`attribution.${value}`)]),
  );
  const label = choice("class", [["", t("attribution.best")], ...network.labels.map((text, i) => [String(i), text])]);
  const layers = network.layers.filter((layer) => hasMaps(layer) && layer.shape[1] * layer.shape[2] > 1);
  const layer = choice("layer", [["", t("attribution.lastLayer")], ...layers.map(({ name }) => [name, name])]);
  const opacity = el("input", {
    type: "range",
    min: 0,
    max: 100,
    on: { input: ({ target }) => go({ opacity: target.value }) },
  });
  const show = (options) => {
    method.field.value = options.method;
    label.field.value = options.classIndex;
    label.field.disabled = options.method === "eigen_cam";
    layer.field.value = options.layer;
    layer.field.disabled = options.method === "occlusion";
    opacity.value = options.opacity;
    all.setAttribute("aria-pressed", String(options.all));
  };
  const all = el(
    "button",
    { type: "button", on: { click: () => go({ all: optionsOf(store).all ? "" : "1" }) } },
    t("attribution.all"),
  );
  const element = el(
    "div.settings",
    {},
    method.element,
    label.element,
    layer.element,
    el("label.setting", {}, el("span", {}, t("attribution.opacity")), opacity),
    all,
    explainButton(context, "attribution"),
  );
  return { element, show, go };
}

/** The image, and a canvas over it. */
function layers(network, planes) {
  const base = picture(network, planes);
  base.setAttribute("role", "img");
  base.setAttribute("aria-label", t("field.image"));
  const heat = el("canvas.heat", { role: "img", "aria-label": t("attribution.map") });
  const box = el("div.map-box", {}, base, heat);
  box.style.aspectRatio = `${network.width} / ${network.height}`;
  return { box, heat };
}

async function attributed(asking, { method, classIndex, layer }, tables, signal) {
  const body = {
    ...asking.model,
    images: await asking.image.asRequest(),
    method: `ATTRIBUTION_METHOD_${method.toUpperCase()}`,
    ...(classIndex === "" ? {} : { classIndex: Number(classIndex) }),
    layer: method === "occlusion" ? "" : layer,
  };
  return answered(await call("Attribute", body, { signal }), method, tables);
}

function answered(answer, method, tables) {
  const bytes = fromBase64(answer.map ?? "");
  const plane = Plane.of(new Float32Array(bytes.slice().buffer), answer.height, answer.width);
  return {
    plane,
    table: tables.activation,
    range: symmetric(plane.low, plane.high),
    prediction: { label: answer.prediction?.label ?? "", score: answer.prediction?.score ?? 0 },
    images: answer.images ?? 0,
    layer: answer.layer ?? "",
    milliseconds: answer.computeMs ?? 0,
    method,
  };
}

function sentence({ prediction, images, layer, milliseconds, method }) {
  return [
    el(
      "b",
      {},
      method === "eigen_cam"
        ? t("attribution.noClass")
        : t("attribution.of", { label: prediction.label, score: percent(prediction.score) }),
    ),
    " ",
    layer ? t("attribution.madeOf", { layer }) : "",
    " ",
    t("attribution.cost", { images, time: figure(milliseconds) }),
  ];
}

/** Paints a map so that where it says nothing, the image beneath is seen. */
function lay(canvas, { plane, table, range }) {
  const { height, width, values } = plane;
  Object.assign(canvas, { height, width });
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const most = Math.max(Math.abs(range.low), Math.abs(range.high)) || 1;
  values.forEach((value, i) => {
    pixels[i] = table[index(value, range)];
    image.data[4 * i + 3] = Math.min(255, (Math.abs(value) / most) * 255);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}
