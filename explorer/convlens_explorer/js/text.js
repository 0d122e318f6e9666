/** The page's words: all of them are in text/<language>.json. */

export const LANGUAGES = { en: "English", ja: "日本語" };

let words = {};
let language = "";
let wanted = "";

/** The language that `t` speaks; "" before one is loaded. */
export function spoken() {
  return language;
}

/** Makes a language the one that `t` speaks. Throws TypeError while the server cannot be reached. */
export async function load(name) {
  wanted = name;
  if (name === language) return;
  const response = await fetch(new URL(`../text/${name}.json`, import.meta.url));
  if (!response.ok) throw new Error(`text/${name}.json: ${response.status}`);
  const read = await response.json();
  // Another one was asked for meanwhile.
  if (name !== wanted) return;
  words = read;
  language = name;
}

/**
 * The text of a key, with {name} replaced by a value; numbers are grouped as the language does.
 * @param {string} key Path in the file: "shell.details".
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  const text = lookUp(key);
  if (typeof text !== "string") throw new Error(`no text "${key}" in ${language}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? value.toLocaleString(language) : String(value);
  });
}

/** Whether there is a text of this key. */
export function has(key) {
  return lookUp(key) !== undefined;
}

/** What stands under a key: a text, a list or a whole section; undefined if nothing. */
export function lookUp(key) {
  return key.split(".").reduce((section, part) => section?.[part], words);
}

/** The language's name for a layer's kind, in plain words; the kind itself if it has none. */
export function kindName(kind) {
  return has(`kind.${kind}`) ? t(`kind.${kind}`) : kind.replaceAll("_", " ");
}
