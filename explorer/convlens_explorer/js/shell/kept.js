/**
 * One's own images, kept by this browser, so that they are there when the page is opened again. They go nowhere else. A
 * browser that keeps nothing, or has no room left, shows the page all the same.
 */

import { PageImage } from "../images.js";

const NAME = "convlens";
const IMAGES = "images";
const COUNT = "convlens-own";
/** The newest are kept. */
const MOST = 24;

/** @returns {Promise<PageImage[]>} In the order in which they came. */
export async function kept() {
  const entries = (await within("readonly", (images) => images.index("time").getAll())) ?? [];
  return entries.map(({ id, name, origin, file }) => new PageImage(id, name, origin, file));
}

/**
 * Keeps images, and forgets those of other ids.
 * @param {PageImage[]} images
 * @param {string[]} [gone]
 */
export async function keep(images, gone = []) {
  await within("readwrite", (store) => {
    for (const id of gone) store.delete(id);
    images.forEach(({ id, name, origin, file }, i) =>
      store.put({ id, name, origin, file, time: Date.now() + i / 1000 }),
    );
    // The index has the oldest first.
    const all = store.index("time").getAllKeys();
    all.onsuccess = () => all.result.slice(0, -MOST).forEach((id) => store.delete(id));
    return all;
  });
}

/** A number that no other image of this browser has, other pages of it included. @param {number} last Of this page. */
export function nextNumber(last) {
  try {
    const number = Math.max(last, Number(localStorage.getItem(COUNT)) || 0) + 1;
    localStorage.setItem(COUNT, String(number));
    return number;
  } catch {
    return last + 1;
  }
}

/**
 * Does something in one transaction.
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} act Gives the request whose result is wanted.
 * @returns {Promise<T | undefined>} Once all is done; undefined if the browser refused.
 */
async function within(mode, act) {
  try {
    const database = await opened();
    try {
      const transaction = database.transaction(IMAGES, mode);
      const request = act(transaction.objectStore(IMAGES));
      await new Promise((resolve, reject) => {
        transaction.oncomplete = resolve;
        transaction.onabort = () => reject(transaction.error);
      });
      return request.result;
    } finally {
      database.close();
    }
  } catch (error) {
    // All that a database refuses with; anything else is a mistake of the page's own.
    if (!(error instanceof DOMException)) throw error;
    return undefined;
  }
}

/** @returns {Promise<IDBDatabase>} */
function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () =>
      request.result.createObjectStore(IMAGES, { keyPath: "id" }).createIndex("time", "time");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
