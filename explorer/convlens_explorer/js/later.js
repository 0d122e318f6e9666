/** Modules that are loaded when they are first needed. */

import { metrics } from "./api.js";
import { beginsAnew } from "./boot.js";

/**
 * Loads one. A browser does not ask again for a module that the network broke off; the page, begun anew, does. Throws
 * ApiError while the server cannot be reached: who asked, asks again at the store's next `attempt`.
 * @template T
 * @param {() => Promise<T>} load An import.
 * @param {AbortSignal} signal
 * @returns {Promise<T>}
 */
export async function later(load, signal) {
  try {
    return await load();
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    await metrics({ signal });
    if (!beginsAnew(error)) throw error;
    return await new Promise(() => {});
  }
}
