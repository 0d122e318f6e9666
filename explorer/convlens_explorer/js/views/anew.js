/** Views that are drawn anew when some of their options change. */

import { el, replace } from "../element.js";
import { saying } from "./asking.js";

/**
 * Draws a view, and draws it anew whenever one of these options of its place changes.
 * @param {HTMLElement} container
 * @param {import("./index.js").Context} context
 * @param {string[]} names Of the options.
 * @param {(content: HTMLElement, context: import("./index.js").Context) => Promise<any>} draw Fills an empty element;
 *   the scope of its context ends with the next drawing.
 * @returns {Promise<{numbers: () => object}>} Once the first drawing is done.
 */
export async function drawnAnew(container, context, names, draw) {
  const { store, scope: whole } = context;
  const { view, layer, channel } = store.get("place");
  const chosen = () => JSON.stringify(names.map((name) => store.get("place").options?.[name]));
  let shown = chosen();
  let scope = whole.child();
  let handle = await fresh(container, draw, { ...context, scope });
  const again = async () => {
    scope.close();
    const mine = (scope = whole.child());
    const focused = container.contains(document.activeElement);
    try {
      handle = await fresh(container, draw, { ...context, scope: mine });
    } catch (error) {
      saying({ ...context, scope: mine }, container)(error);
      return;
    }
    if (focused && !container.contains(document.activeElement)) focusOn(container);
  };
  store.subscribe(
    ["place"],
    () => {
      const place = store.get("place");
      if (place.view !== view || place.layer !== layer || place.channel !== channel || chosen() === shown) return;
      shown = chosen();
      again();
    },
    whole,
  );
  return { numbers: () => handle.numbers() };
}

/** Keeps the keyboard where it was: at the buttons that turn pages, or where one chooses. */
function focusOn(container) {
  /** @type {HTMLElement | null} */ (container.querySelector(".pager button:not(:disabled), .picker input"))?.focus({
    preventScroll: true,
  });
}

async function fresh(container, draw, context) {
  const content = el("div.view-content");
  const handle = await draw(content, context);
  if (!context.scope.closed) replace(container, content);
  return handle;
}
