/** Two images, or two models or versions, compared layer by layer. */

import { layers } from "../api.js";
import { fixed } from "../arithmetic/format.js";
import { el, replace } from "../element.js";
import { figure, symmetric } from "../paint.js";
import { Plane } from "../plane.js";
import { t } from "../text.js";
import { drawnAnew } from "./anew.js";
import { saying } from "./asking.js";
import { Unable } from "./index.js";
import { legend, MapBox, pageOf, pager } from "./parts.js";

const MAPS = 12;
/** Images that are compared together, at most: what the server takes at once unless it is told otherwise. */
const SET = 16;

export function title() {
  return t("compare.title");
}

/** @param {HTMLElement} container @param {import("./index.js").Context} context */
export function open(container, context) {
  return drawnAnew(container, context, ["with", "set"], draw);
}

async function draw(container, context) {
  const { store, scope, network, image } = context;
  const { options = {} } = store.get("place");
  const current = image();
  if (!current) throw new Unable(t("view.noImage"));
  const others = partners(store, network, current);
  const wanted = others.find(({ id }) => id === options.with) ?? others[0];
  const go = (change) => store.go({ view: "compare", options: { ...store.get("place").options, ...change } });
  const says = el("div", { role: "status" });
  const body = el("tbody");
  const detail = el("div.compare-detail");
  const set =
    wanted?.model && options.set === "all"
      ? store
          .get("images")
          .filter(({ origin }) => origin === "sample")
          .slice(0, SET)
      : [current];
  container.append(
    el("p.lead", {}, t("compare.lead")),
    el(
      "div.settings",
      {},
      el(
        "label.setting",
        {},
        el("span", {}, t("compare.with")),
        el(
          "select",
          { on: { change: ({ target }) => go({ with: target.value, layer: "", page: "0" }) } },
          others.map(({ id, name }) => el("option", { value: id, selected: id === wanted?.id }, name)),
        ),
      ),
      wanted?.model &&
        el(
          "label.setting",
          {},
          el("input", {
            type: "checkbox",
            checked: options.set === "all",
            on: { change: ({ target }) => go({ set: target.checked ? "all" : "" }) },
          }),
          el("span", {}, t("compare.set")),
        ),
    ),
    says,
  );
  if (!wanted) {
    replace(says, t("compare.nothing"));
    return { numbers: () => ({}) };
  }
  container.append(
    el(
      "div.compare-stage",
      {},
      el(
        "div.table-frame",
        { tabindex: 0, role: "region", "aria-label": t("compare.layers") },
        el(
          "table.compare",
          {},
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ["layer", "cosine", "difference", ...(set.length > 1 ? ["cka"] : [])].map((key) =>
                el("th", { scope: "col" }, t(`compare.${key}`)),
              ),
            ),
          ),
          body,
        ),
      ),
      detail,
    ),
    el("p.hint", {}, t("compare.measures")),
  );
  const request = await requestOf(network, set, wanted);
  const found = [];
  const take = (head) => {
    found.push(read(head));
    body.append(row(found.at(-1), (layer) => go({ layer, page: "0" })));
  };
  replace(says, t("compare.waiting"));
  try {
    await layers("Compare", request, take, scope.signal);
  } catch (error) {
    saying(context, says)(error);
    return { numbers: () => ({}) };
  }
  replace(
    says,
    t(set.length > 1 ? "compare.doneSet" : "compare.done", {
      count: found.length,
      name: wanted.name,
      images: set.length,
    }),
  );

  let shown = "";
  const follow = async () => {
    const { layer = "", page = "" } = store.get("place").options ?? {};
    if (store.get("place").view !== "compare" || `${layer} ${page}` === shown) return;
    const asked = (shown = `${layer} ${page}`);
    for (const line of body.rows) line.classList.toggle("chosen", line.dataset.layer === layer);
    const known = found.find(({ name }) => name === layer);
    if (!known) {
      replace(detail);
      return;
    }
    try {
      await layers(
        "Compare",
        { ...request, layers: [layer], includeDifferences: true, valueType: "VALUE_TYPE_FLOAT32" },
        (head, data) => {
          // Answers may come in another order than they were asked for.
          if (asked !== shown) return;
          replace(
            detail,
            differences(context, head, data, page, (to) => go({ page: String(to) })),
          );
        },
        scope.signal,
      );
    } catch (error) {
      saying(context, detail)(error);
    }
  };
  store.subscribe(["place"], follow, scope);
  follow();
  return { numbers: () => ({ with: wanted.name, images: set.map(({ name }) => name), layers: found }) };
}

/** What the current model and image can be compared with: the other images, then the other models. */
function partners(store, network, current) {
  const chosen = store.get("chosen");
  const images = store
    .get("images")
    .filter(({ id }) => id !== current.id)
    .sort((a, b) => Number(chosen.includes(b.id)) - Number(chosen.includes(a.id)))
    .map((image) => ({ id: `image:${image.id}`, name: t("compare.image", { name: image.name }), image }));
  const models = store
    .get("models")
    .filter(
      ({ model, version, state }) =>
        state === "MODEL_STATE_READY" && (model !== network.model || Number(version) !== network.version),
    )
    .map(({ model, version }) => ({
      id: `model:${model}:${version}`,
      name: t("compare.model", { model, version: String(version) }),
      model,
      version: Number(version),
    }));
  return [...images, ...models];
}

async function requestOf(network, set, wanted) {
  const files = (await Promise.all(set.map((image) => image.asRequest()))).flatMap(({ encoded }) => encoded.files);
  const first = { model: network.model, version: network.version, images: { encoded: { files } } };
  if (wanted.model) return { first, second: { model: wanted.model, version: wanted.version } };
  return { first, second: { model: network.model, version: network.version, images: await wanted.image.asRequest() } };
}

function read({ layer, kind, cosine = [], relativeDifference = [], cka }) {
  const mean = (list) => list.reduce((sum, value) => sum + Number(value), 0) / (list.length || 1);
  return {
    name: layer,
    kind,
    cosine: mean(cosine),
    difference: mean(relativeDifference),
    cka: cka === undefined ? null : Number(cka),
  };
}

function row({ name, cosine, difference, cka }, open) {
  return el(
    "tr",
    { dataset: { layer: name, cosine, difference, cka: cka ?? "" } },
    el("th", { scope: "row" }, el("button.link", { type: "button", on: { click: () => open(name) } }, name)),
    el(
      "td",
      {},
      el("span.share", { "aria-hidden": "true", style: { "--share": `${Math.max(0, cosine) * 100}%` } }),
      fixed(cosine, 3),
    ),
    el("td", {}, figure(difference)),
    cka === null ? null : el("td", {}, fixed(cka, 3)),
  );
}

function differences({ scope, tables }, head, data, page, onPage) {
  const values = new Float32Array(data.buffer, 0, data.length / 4);
  const [, channels, height, width] = head.shape.length === 4 ? head.shape : [1, 1, 1, head.shape[1]];
  const area = height * width;
  const all = Plane.of(values.subarray(0, channels * area), 1, channels * area);
  const range = symmetric(all.low, all.high);
  const pages = Math.ceil(channels / MAPS);
  const from = pageOf(page, pages) * MAPS;
  const boxes = Array.from({ length: Math.min(MAPS, channels - from) }, (_, i) => {
    const channel = from + i;
    const plane = Plane.of(values.subarray(channel * area, (channel + 1) * area), height, width);
    const label = t("compare.mapOf", { layer: head.layer, channel });
    return el(
      "figure",
      {},
      new MapBox({ scope, label, plane, table: tables.activation, range }).element,
      el("figcaption", {}, String(channel)),
    );
  });
  return [
    el("h3", {}, t("compare.differences", { layer: head.layer })),
    el("div.dense-grid", { dataset: { layer: head.layer } }, boxes),
    pager(from / MAPS, pages, onPage),
    legend(t("compare.secondMinusFirst"), tables.activation, range),
  ];
}
