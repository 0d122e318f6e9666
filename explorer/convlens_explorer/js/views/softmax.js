/** Softmax: logits before, scores after, and the formula with its numbers. */

import { fixed, percent } from "../arithmetic/format.js";
import { css } from "../colours.js";
import { el, replace } from "../element.js";
import { t } from "../text.js";
import { drawnAnew } from "./anew.js";
import { Asking, unitOf } from "./asking.js";
import { channelPicker, explainButton, legend, number, pageOf, pager, shareOf } from "./parts.js";

const KINDS = ["softmax"];
/** Classes on a page; the others of a large network are summed up. */
const CLASSES = 20;

export function title(context) {
  const { name, channel } = unitOf(context, KINDS);
  return t("softmax.titleOf", { layer: name, label: context.network.labels[channel] ?? String(channel) });
}

/** @param {HTMLElement} container @param {import("./index.js").Context} context */
export function open(container, context) {
  return drawnAnew(container, context, ["page"], draw);
}

async function draw(container, context) {
  const { store, scope, network, tables } = context;
  const { layer, name, channel, options } = unitOf(context, KINDS);
  const told = await new Asking(context).explain({ layer: name, channel });
  const logits = told.patches[0].values;
  const { exponentials, sum, index } = told.arithmetic;
  const largest = Math.max(...logits);
  const order = logits.map((_, i) => i);
  if (order.length > CLASSES) order.sort((a, b) => logits[b] - logits[a]);
  const pages = Math.ceil(order.length / CLASSES);
  const page = pageOf(options.page, pages);
  const shown = order.slice(page * CLASSES, (page + 1) * CLASSES);
  const others = sum - shown.reduce((total, i) => total + exponentials[i], 0);
  const range = { low: Math.min(...logits), high: largest };
  const label = (i) => network.labels[i] ?? String(i);
  const source = network.layer(told.patches[0].layer);
  const parts = new Map(shown.map((i) => [i, []]));
  /** Lights up a class in all its places. */
  const light = (wanted) => {
    for (const [i, elements] of parts) for (const element of elements) element.classList.toggle("lit", i === wanted);
  };
  const lit = (element, i) => {
    parts.get(i)?.push(element);
    for (const type of ["pointerenter", "focusin"]) scope.listen(element, type, () => light(i));
    for (const type of ["pointerleave", "focusout"]) scope.listen(element, type, () => light(null));
    return element;
  };
  const toLogit = (i) => () =>
    store.go(source?.kind === "dense" ? { view: "dense", layer: source.name, channel: i } : {});

  const row = (i) => {
    const logit = number("logit", logits[i], 3);
    const element = el(
      "tr",
      { dataset: { index: i } },
      el(
        "th",
        { scope: "row" },
        el(
          "button.link",
          { type: "button", on: { click: () => store.go({ ...store.get("place"), channel: i }) } },
          label(i),
        ),
      ),
      el(
        "td.logit",
        {},
        el(
          "button.circle",
          {
            type: "button",
            "aria-label": t("softmax.logitOf", { label: label(i), logit: fixed(logits[i], 4) }),
            on: { click: toLogit(i) },
          },
          el("span", { style: { "background-color": css(tables.logit, 0.15 + 0.85 * shareOf(logits[i], range)) } }),
        ),
        logit,
      ),
      el("td", {}, number("exponential", exponentials[i])),
      el(
        "td.scored",
        {},
        el("span.share", { "aria-hidden": "true", style: { "--share": `${(exponentials[i] / sum) * 100}%` } }),
        number("score", exponentials[i] / sum),
      ),
    );
    element.classList.toggle("chosen", i === index);
    return lit(element, i);
  };
  const term = (i) =>
    lit(
      el("span.term", { tabindex: 0, dataset: { index: i } }, "exp(", el("span", {}, fixed(logits[i] - largest)), ")"),
      i,
    );

  replace(
    container,
    el(
      "div.view-bar",
      {},
      channelPicker(context, layer, channel, { names: logits.map((_, i) => label(i)) }),
      explainButton(context, "softmax"),
    ),
    el(
      "div.fraction",
      { role: "group", "aria-label": t("softmax.formula") },
      el("span", {}, t("softmax.scoreOf", { label: label(index) }), " ="),
      el(
        "span.over",
        {},
        el("span.numerator", {}, parts.has(index) ? term(index) : `exp(${fixed(logits[index] - largest)})`),
        el(
          "span.denominator",
          {},
          shown.map((i, at) => [at ? " + " : "", term(i)]),
          pages > 1 ? ` + ${t("softmax.others", { count: order.length - shown.length, sum: fixed(others, 4) })}` : "",
        ),
      ),
      el("span", {}, "= "),
      el(
        "span.over",
        {},
        el("span.numerator", {}, number("numerator", exponentials[index])),
        el("span.denominator", {}, number("sum", sum)),
      ),
      el("span", {}, "= ", number("result", told.result), ` (${percent(told.result)})`),
    ),
    el("p.hint", {}, t("softmax.hint", { largest: fixed(largest, 3) })),
    el(
      "div.table-frame",
      { tabindex: 0, role: "region", "aria-label": t("softmax.table") },
      el(
        "table.softmax",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ["label", "before", "exponential", "after"].map((key) => el("th", { scope: "col" }, t(`softmax.${key}`))),
          ),
        ),
        el("tbody", {}, shown.map(row)),
      ),
    ),
    pager(page, pages, (to) => store.go({ view: "softmax", layer: name, channel, options: { page: String(to) } })),
    el("p.quiet", {}, t("view.network"), " ", number("activation", told.activation)),
    legend(t("softmax.logits"), tables.logit, range),
  );
  return {
    numbers: () => ({ layer: name, unit: channel, logits, exponentials, sum, result: told.result }),
  };
}
