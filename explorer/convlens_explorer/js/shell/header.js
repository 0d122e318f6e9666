/** The page's head: models and versions to choose from, the tools, the server's pulse, language and theme. */

import { el, replace } from "../element.js";
import { icon } from "../icons.js";
import { ready } from "../session.js";
import { LANGUAGES, t } from "../text.js";
import { TOOLS } from "../views/index.js";
import { help } from "./help.js";
import { Live } from "./live.js";

export class Header {
  /**
   * @param {import("../store.js").Store} store
   * @param {import("../scope.js").Scope} scope
   * @param {(error: unknown) => void} report
   * @param {() => Promise<void>} refresh Asks for the models; they may have come, left or been loaded meanwhile.
   */
  constructor(store, scope, report, refresh) {
    this.store = store;
    this.models = el("select", {
      "aria-label": t("shell.model"),
      id: "model",
      on: { change: () => this.#chooseModel() },
    });
    this.versions = el("select", {
      "aria-label": t("shell.version"),
      id: "version",
      on: { change: () => this.#chooseVersion() },
    });
    this.tools = el("nav.tools", { "aria-label": t("shell.tools") });
    this.live = new Live(scope, report);
    this.element = el(
      "header.head",
      {},
      el(
        "h1.brand",
        {},
        el(
          "a",
          { href: "#", on: { click: (event) => (event.preventDefault(), store.go({})) } },
          el("b", {}, t("shell.title")),
        ),
      ),
      el("div.choosers", {}, this.models, this.versions),
      this.tools,
      this.live.element,
      this.#preferences(),
    );
    store.subscribe(["models", "model", "version", "network"], () => this.#showModels(), scope);
    store.subscribe(["place", "article"], () => this.#showTools(), scope);
    scope.listen(this.models, "focus", () => refresh().catch(report));
    this.#showModels();
    this.#showTools();
  }

  #chooseModel() {
    this.store.set({ model: this.models.value, version: 0, trouble: null });
  }

  #chooseVersion() {
    this.store.set({ version: Number(this.versions.value), trouble: null });
  }

  #showModels() {
    const { store } = this;
    const models = store.get("models");
    const model = store.get("model");
    const names = [...new Set([...models.map((entry) => entry.model), ...(model ? [model] : [])])];
    replace(
      this.models,
      names.map((name) => {
        const versions = models.filter((entry) => entry.model === name);
        const able = versions.some(ready);
        const note = able ? "" : ` – ${t(`shell.state.${versions[0]?.state ?? "absent"}`)}`;
        return el("option", { value: name, selected: name === model, disabled: !able && name !== model }, name + note);
      }),
    );
    const own = models.filter((entry) => entry.model === model && entry.version);
    const current = store.get("version") || store.get("network")?.version || 0;
    replace(
      this.versions,
      own.map((entry) => {
        const note = entry.state === "MODEL_STATE_READY" ? "" : ` – ${t(`shell.state.${entry.state}`)}`;
        return el(
          "option",
          { value: entry.version, selected: entry.version === current, disabled: !ready(entry), title: entry.error },
          t("shell.versionNumber", { version: String(entry.version) }) + note,
        );
      }),
    );
    this.versions.hidden = own.length < 2;
  }

  #showTools() {
    const place = this.store.get("place");
    const open = (view) => this.store.go(place.view === view ? {} : { view });
    const reading = this.store.get("article") !== null;
    replace(
      this.tools,
      TOOLS.map((view) =>
        el(
          "button.tool",
          { type: "button", "aria-pressed": String(place.view === view), on: { click: () => open(view) } },
          t(`view.open.${view}`),
        ),
      ),
      el(
        "button.tool",
        {
          type: "button",
          "aria-pressed": String(reading),
          on: { click: () => this.store.set({ article: reading ? null : "" }) },
        },
        t("shell.explanation"),
      ),
    );
  }

  #preferences() {
    const { store } = this;
    const language = store.get("language");
    const dark = store.get("theme") === "dark";
    return el(
      "div.preferences",
      {},
      el(
        "select",
        {
          "aria-label": t("shell.language"),
          id: "language",
          on: { change: (event) => store.set({ language: event.target.value }) },
        },
        Object.entries(LANGUAGES).map(([name, title]) =>
          el("option", { value: name, lang: name, selected: name === language }, title),
        ),
      ),
      el(
        "button.icon",
        {
          type: "button",
          id: "theme",
          "aria-label": t(dark ? "shell.light" : "shell.dark"),
          title: t(dark ? "shell.light" : "shell.dark"),
          on: { click: () => store.set({ theme: dark ? "light" : "dark" }) },
        },
        icon(dark ? "sun" : "moon"),
      ),
      el(
        "button.icon",
        {
          type: "button",
          id: "help",
          "aria-label": t("shell.help"),
          title: t("shell.help"),
          on: { click: () => help() },
        },
        "?",
      ),
    );
  }
}
