/** The images that one can look at: a model's samples, and one's own. */

import { toBase64 } from "./wire.js";

/** An image that the server can be sent. */
export class PageImage {
  #url = "";
  /** @type {Promise<object> | null} */
  #request = null;

  /**
   * @param {string} id Unique on the page; a sample's name, a picture's address, or "own-1", …
   * @param {string} name To read.
   * @param {"sample" | "own" | "link" | "drawing"} origin
   * @param {Blob} file JPEG, PNG or WebP.
   */
  constructor(id, name, origin, file) {
    this.id = id;
    this.name = name;
    this.origin = origin;
    this.file = file;
  }

  /** An address to show it by. */
  get url() {
    return (this.#url ||= URL.createObjectURL(this.file));
  }

  /** The image as the field `images` of a request. */
  asRequest() {
    this.#request ??= this.file
      .arrayBuffer()
      .then((buffer) => ({ encoded: { files: [toBase64(new Uint8Array(buffer))] } }));
    return this.#request;
  }

  /** Lets go of what the browser keeps for it. */
  forget() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = "";
  }
}
