/** The page's beginning. */

import { reached } from "./api.js";
import { fromHash, toHash } from "./link.js";
import { tables } from "./colours.js";
import { Overview } from "./overview/overview.js";
import { Scope } from "./scope.js";
import { Session } from "./session.js";
import { Article } from "./shell/article.js";
import { Gallery } from "./shell/gallery.js";
import { Header } from "./shell/header.js";
import { Host } from "./shell/host.js";
import { invitation } from "./shell/invitation.js";
import { shortcuts } from "./shell/shortcuts.js";
import { Toolbar } from "./shell/toolbar.js";
import { Trouble } from "./shell/trouble.js";
import { Own } from "./shell/own.js";
import { preferences, remember } from "./shell/preferences.js";
import { Store } from "./store.js";
import { el, replace } from "./element.js";
import { load, spoken, t } from "./text.js";

/** What a link holds. @type {Array<keyof import("./store.js").State>} */
const LINKED = ["model", "version", "chosen", "scale", "details", "article", "place"];
const LINK_MS = 200;

/** Everything that lasts as long as the page: its state, the server, the link. */
async function begin() {
  const scope = new Scope();
  const store = new Store({
    models: [],
    network: null,
    images: [],
    trouble: null,
    attempt: 0,
    ...fromHash(location.hash),
    ...preferences(),
  });
  const trouble = new Trouble(store, scope, () => session.refresh());
  const session = new Session(store, scope, (error) => trouble.report(error));
  const own = new Own(store, scope, (error) => trouble.report(error));
  scope.listen(window, "unhandledrejection", (event) => {
    event.preventDefault();
    trouble.report(event.reason);
  });
  follow(store, scope);
  const page = { store, scope, trouble, session, own };
  const restored = own.restore();
  await load(store.get("language"));
  let shown = show(page);
  const redraw = async () => {
    remember(store);
    await reached(() => load(store.get("language")));
    if (spoken() !== store.get("language")) return;
    shown.close();
    shown = show(page);
  };
  store.subscribe(["language", "theme"], redraw, scope);
  // The server was away when another language was asked for.
  store.subscribe(["attempt"], () => spoken() !== store.get("language") && redraw(), scope);
  try {
    await restored;
    await session.begin();
  } catch (error) {
    trouble.report(error);
  }
}

/** Keeps the address and the state the same. */
function follow(store, scope) {
  let later = () => {};
  const write = (far) => {
    later();
    const hash = toHash(state(store));
    if (hash === location.hash) return;
    if (far) history.pushState(null, "", hash);
    else history.replaceState(history.state, "", hash);
  };
  store.subscribe(
    LINKED,
    (changed) => {
      // One step in the browser's history for each place; a pointer that passes over pixels changes it many times a
      // second, and browsers take only so many changes.
      const before = fromHash(location.hash).place ?? {};
      const { view, layer, channel } = store.get("place");
      const far =
        changed.has("place") && (view !== before.view || layer !== before.layer || channel !== before.channel);
      if (far) return write(true);
      later();
      later = scope.after(LINK_MS, () => write(false));
      return undefined;
    },
    scope,
  );
  scope.listen(window, "popstate", () => store.set(fromHash(location.hash)));
}

function state(store) {
  return /** @type {any} */ (Object.fromEntries(LINKED.map((key) => [key, store.get(key)])));
}

/** Draws the page in the current language and theme; closing the scope that it gives ends all of it. */
function show({ store, scope: whole, trouble, session, own }) {
  const scope = whole.child();
  document.documentElement.lang = store.get("language");
  document.documentElement.dataset.theme = store.get("theme");
  const stage = el("div.stage-area");
  const header = new Header(
    store,
    scope,
    (error) => trouble.report(error),
    () => session.refresh(),
  );
  const toolbar = new Toolbar(store, scope);
  const article = new Article(store, scope);
  let sheet = scope.child();
  let overview = null;
  let host = null;
  const draw = () => {
    sheet.close();
    sheet = scope.child();
    const network = store.get("network");
    if (!network) return replace(stage, el("p.waiting", {}, t("shell.loading")));
    document.title = `${network.model} · convlens`;
    replace(stage);
    const context = {
      store,
      scope: sheet,
      network,
      maps: session.maps,
      ranges: session.ranges,
      tables: tables(store.get("theme")),
      image: () => store.get("images").find(({ id }) => id === store.get("chosen")[0]) ?? null,
      report: (error, image) => trouble.report(error) && image && own.drop(image),
      answered: (answer) => toolbar.answered(answer),
    };
    overview = new Overview(stage, context);
    stage.append(invitation(context, () => gallery.choose()));
    host = new Host(stage, context, overview);
    toolbar.attach(overview, host);
    article.attach(context);
    return stage;
  };
  store.subscribe(["network"], draw, scope);
  const gallery = new Gallery(store, scope, own);
  replace(
    document.body,
    el(
      "a.skip",
      { href: "#stage", on: { click: (event) => (event.preventDefault(), stage.querySelector(".map")?.focus()) } },
      t("shell.skip"),
    ),
    header.element,
    trouble.banner(scope),
    gallery.element,
    el("div.middle", {}, el("main.stage", { id: "stage" }, toolbar.element, stage), article.element),
  );
  own.catchDrops(scope);
  shortcuts(store, scope, () => ({ overview, host }));
  draw();
  return scope;
}

await begin();

export {};
