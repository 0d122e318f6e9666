/** Keys that work everywhere on the page; the help names them. */

import { help } from "./help.js";

/**
 * @param {import("../store.js").Store} store
 * @param {import("../scope.js").Scope} scope
 * @param {() => {overview: import("../overview/overview.js").Overview | null, host: import("./host.js").Host | null}} parts
 */
export function shortcuts(store, scope, parts) {
  const keys = {
    "?": () => help(),
    Escape: () => escape(store, parts()),
    "+": () => parts().overview?.zoom.by(1.25),
    "-": () => parts().overview?.zoom.by(1 / 1.25),
    0: () => parts().overview?.zoom.fit(),
    d: () => store.set({ details: !store.get("details") }),
    e: () => store.set({ article: store.get("article") === null ? "" : null }),
    "[": () => neighbour(store, -1),
    "]": () => neighbour(store, 1),
  };
  scope.listen(document, "keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=range]), textarea, select, dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

/** One level back: out of a view, then out of the explanation. */
function escape(store, { host }) {
  if (host?.isOpen) host.back();
  else if (store.get("article") !== null) store.set({ article: null });
}

/** The next image of the gallery in the current one's place. */
function neighbour(store, by) {
  const ids = store.get("images").map(({ id }) => id);
  const [current, ...others] = store.get("chosen");
  if (!ids.length) return;
  const next = ids[(ids.indexOf(current) + by + ids.length) % ids.length];
  store.set({ chosen: [next, ...others.filter((id) => id !== next)] });
}
