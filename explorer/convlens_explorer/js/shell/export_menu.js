/** The menu that saves what is shown: as a picture, or its numbers. */

import { el } from "../element.js";
import { npz } from "../export/npz.js";
import { overviewNumbers, toArrays, toJson } from "../export/numbers.js";
import { png } from "../export/png.js";
import { t } from "../text.js";

/**
 * @param {import("../overview/overview.js").Overview} overview
 * @param {import("./host.js").Host} host
 */
export function exportMenu(overview, host) {
  const { context } = overview;
  const { scope } = context;
  const numbers = () => (host.isOpen ? (host.handle?.numbers?.() ?? {}) : overviewNumbers(overview, scope.signal));
  const makers = {
    png: () =>
      host.isOpen
        ? png(host.body, host.body.scrollWidth, host.body.scrollHeight)
        : png(overview.world, overview.layout.width, overview.layout.height),
    json: async () => new Blob([toJson(await numbers())], { type: "application/json" }),
    npz: async () => npz(toArrays(await numbers())),
  };
  const choose = async (ending, item) => {
    menu.open = false;
    try {
      save(await makers[ending](), `${fileName(context, host)}.${ending}`);
    } catch (error) {
      context.report(error);
    }
    item.blur();
  };
  const menu = /** @type {HTMLDetailsElement} */ (
    el(
      "details.menu",
      {},
      el("summary", { id: "export" }, t("shell.export")),
      el(
        "div.menu-items",
        {},
        Object.keys(makers).map((ending) =>
          el(
            "button",
            { type: "button", id: `export-${ending}`, on: { click: (event) => choose(ending, event.target) } },
            t(`shell.exports.${ending}`),
          ),
        ),
      ),
    )
  );
  scope.listen(document, "click", (event) => !menu.contains(event.target) && (menu.open = false));
  scope.listen(menu, "keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.stopPropagation();
    event.preventDefault();
    menu.open = false;
    /** @type {HTMLElement} */ (menu.firstElementChild).focus();
  });
  return menu;
}

function fileName({ store, network }, host) {
  const place = store.get("place");
  const parts = [
    network.model,
    network.version,
    store.get("chosen")[0],
    host.isOpen ? place.view : "",
    place.layer,
    place.channel,
  ];
  return parts
    .filter((part) => part !== undefined && part !== "")
    .join("-")
    .replace(/[^\w.-]+/g, "_")
    .slice(0, 100);
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  // The download has begun when click returns; the address is not needed after the task.
  queueMicrotask(() => URL.revokeObjectURL(url));
}
