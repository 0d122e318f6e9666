/** The explanation of each kind of layer, with the lecture's examples. */

import { el } from "../element.js";
import { lookUp, t } from "../text.js";
import { viewFor } from "../views/index.js";
import { convolutionExample, lectureNetwork, poolingExample } from "./examples.js";
import { SECTIONS } from "./sections.js";

/** Views in which a section's subject can be tried. */
const TRIED_IN = { convolution: "playground", attribution: "attribution" };
const EXAMPLES = { convolution: convolutionExample, pooling: poolingExample, dense: lectureNetwork };

/**
 * Writes the article, and follows the store's `article` to its sections.
 * @param {HTMLElement} container
 * @param {import("../views/index.js").Context} context `network` may be null.
 */
export function open(container, context) {
  const { store, scope } = context;
  const headings = {};
  const sections = Object.keys(SECTIONS).map((name) => {
    headings[name] = el("h3", { id: `article-${name}`, tabindex: -1 }, t(`article.${name}.title`));
    return el(
      "section",
      { "aria-labelledby": `article-${name}` },
      headings[name],
      lookUp(`article.${name}.text`).map((paragraph) => el("p", {}, paragraph)),
      EXAMPLES[name]?.(context),
      TRIED_IN[name] && tryOut(store, TRIED_IN[name]),
      layersOf(context, SECTIONS[name]),
    );
  });
  const contents = el(
    "nav.contents",
    { "aria-label": t("article.contents") },
    el(
      "ul",
      {},
      Object.keys(SECTIONS).map((name) =>
        el(
          "li",
          {},
          el("button.link", { type: "button", on: { click: () => show(name) } }, t(`article.${name}.title`)),
        ),
      ),
    ),
  );
  container.append(el("article.explanation", {}, contents, sections));
  const show = (name) => {
    headings[name].scrollIntoView({ block: "start" });
    headings[name].focus({ preventScroll: true });
    store.set({ article: name });
  };
  const follow = () => {
    const name = store.get("article");
    if (name in headings && document.activeElement !== headings[name]) show(name);
  };
  store.subscribe(["article"], follow, scope);
  scope.frame(follow);
}

function tryOut(store, view) {
  return el("p", {}, el("button", { type: "button", on: { click: () => store.go({ view }) } }, t(`view.open.${view}`)));
}

/** Links to the model's layers of some kinds. */
function layersOf({ network, store }, kinds) {
  if (!network || !kinds.length) return null;
  const layers = network.layers.filter((layer) => kinds.includes(layer.kind));
  if (!layers.length) return null;
  return el(
    "p.layers",
    {},
    t("article.toLayers"),
    " ",
    layers.map((layer) => [
      el(
        "button.link",
        { type: "button", on: { click: () => store.go({ view: viewFor(layer), layer: layer.name, channel: 0 }) } },
        layer.name,
      ),
      " ",
    ]),
  );
}
