/** One's own images: from files, the clipboard, an address, the camera or the drawing pad, brought into the page. */

import { PageImage } from "../images.js";
import { fitted, inspect, Refused } from "../picture.js";
import { keep, kept, nextNumber } from "./kept.js";

export class Own {
  #count = 0;
  /** What was chosen before the last image came. @type {string[]} */
  #before = [];

  /**
   * @param {import("../store.js").Store} store
   * @param {import("../scope.js").Scope} scope
   * @param {(error: unknown) => void} report
   */
  constructor(store, scope, report) {
    this.store = store;
    this.scope = scope;
    this.report = report;
    // Addresses that a link names are images to bring in.
    store.subscribe(["chosen", "network"], () => this.#bringLinked(), scope);
  }

  /**
   * Takes files; those that are no images are named in the banner, the others are shown.
   * @param {Iterable<File | Blob>} files
   */
  async take(files) {
    const taken = [];
    for (const file of files) {
      const name = /** @type {File} */ (file).name ?? "";
      try {
        taken.push(this.make(await inspect(file, name), name, "own"));
      } catch (error) {
        this.#refuse(error);
      }
    }
    if (taken.length) this.show(taken);
    return taken;
  }

  /** Brings back what this browser has kept. */
  async restore() {
    this.store.set({ images: [...this.store.get("images"), ...(await kept())] });
  }

  /** @param {Blob} file JPEG, PNG or WebP. */
  make(file, name, origin, id = `own-${(this.#count = nextNumber(this.#count))}`) {
    return new PageImage(id, name || id, origin, file);
  }

  /** Adds images, and shows them: one in the place of the current one, several side by side. */
  show(images) {
    const { store } = this;
    const ids = images.map(({ id }) => id);
    const others = store.get("images").filter(({ id }) => !ids.includes(id));
    const chosen = store.get("chosen");
    this.#before = chosen;
    store.set({
      images: [...others, ...images],
      chosen:
        ids.length > 1
          ? ids.slice(0, MOST_SIDE_BY_SIDE)
          : [...ids, ...chosen.slice(1).filter((id) => !ids.includes(id))],
      trouble: store.get("trouble")?.kind === "image" ? null : store.get("trouble"),
    });
    // A link names its picture by itself.
    keep(images.filter(({ origin }) => origin === "own"));
  }

  /**
   * Shows a drawing in the place of the last one.
   * @param {PageImage} image
   */
  draw(image) {
    const { store } = this;
    const old = store.get("images").filter(({ origin }) => origin === "drawing");
    const chosen = store.get("chosen");
    const place = Math.max(
      0,
      chosen.findIndex((id) => old.some((other) => other.id === id)),
    );
    store.set({
      images: [...store.get("images").filter((other) => !old.includes(other)), image],
      chosen: chosen.length ? chosen.map((id, i) => (i === place ? image.id : id)) : [image.id],
    });
    for (const other of old) other.forget();
    keep(
      [image],
      old.map(({ id }) => id),
    );
  }

  /** Takes an image away, because one asks for it or the server cannot read it; what was shown before comes back. */
  drop(image) {
    const { store } = this;
    const images = store.get("images").filter((other) => other !== image);
    const rest = store.get("chosen").filter((id) => id !== image.id);
    const before = this.#before.filter((id) => images.some((other) => other.id === id));
    store.set({ images, chosen: rest.length ? rest : before.length ? before : images.slice(0, 1).map(({ id }) => id) });
    image.forget();
    keep([], [image.id]);
  }

  /** Brings in the picture at an address. Gives whether it could. */
  async fromAddress(address) {
    try {
      const picture = await fitted(await loaded(address));
      const name = decodeURIComponent(new URL(address).pathname.split("/").pop() ?? "") || address;
      this.show([this.make(picture, name, "link", address)]);
      return true;
    } catch (error) {
      this.#refuse(error instanceof Refused ? error : new Refused("address", { address }));
      return false;
    }
  }

  /** Takes images that are dropped or pasted anywhere on the page. */
  catchDrops(scope) {
    let depth = 0;
    const mark = (on) => document.body.classList.toggle("is-dropping", on);
    scope.listen(document, "dragenter", (event) => (event.preventDefault(), depth++, mark(true)));
    scope.listen(document, "dragover", (event) => event.preventDefault());
    scope.listen(document, "dragleave", () => --depth <= 0 && mark(false));
    scope.listen(document, "drop", (event) => {
      event.preventDefault();
      depth = 0;
      mark(false);
      this.#takeTransfer(event.dataTransfer);
    });
    scope.listen(document, "paste", (event) => {
      if (!event.target.closest?.("input, textarea")) this.#takeTransfer(event.clipboardData);
    });
    scope.onClose(() => mark(false));
  }

  #takeTransfer(transfer) {
    const files = [...(transfer?.files ?? [])];
    const address = transfer?.getData("text/uri-list") || transfer?.getData("text/plain") || "";
    if (files.length) this.take(files);
    else if (/^https?:\/\/\S+$/.test(address.trim())) this.fromAddress(address.trim());
  }

  #bringLinked() {
    if (!this.store.get("network")) return;
    for (const id of this.store.get("chosen")) {
      if (/^https?:/.test(id) && !this.store.get("images").some((image) => image.id === id)) this.#bring(id);
    }
  }

  async #bring(address) {
    if (!(await this.fromAddress(address))) {
      const rest = this.store.get("chosen").filter((id) => id !== address);
      const [first] = this.store.get("images");
      this.store.set({ chosen: rest.length || !first ? rest : [first.id] });
    }
  }

  #refuse(error) {
    if (!(error instanceof Refused)) return this.report(error);
    return this.store.set({ trouble: { kind: "image", key: `images.refused.${error.message}`, values: error.values } });
  }
}

export const MOST_SIDE_BY_SIDE = 4;

/** @returns {Promise<HTMLImageElement>} */
function loaded(address) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    // Without the other server's permission its pixels could be shown, but not read.
    image.crossOrigin = "anonymous";
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Refused("address", { address }));
    image.src = address;
  });
}
