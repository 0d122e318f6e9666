/** What the reader likes, on this browser: language and theme. It is no part of a link, which others open too. */

import { LANGUAGES } from "../text.js";

const KEY = "convlens";

/** @returns {{language: string, theme: "light" | "dark"}} */
export function preferences() {
  const kept = read();
  const spoken = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag in LANGUAGES);
  return {
    language: kept.language in LANGUAGES ? kept.language : (spoken ?? "en"),
    theme: ["light", "dark"].includes(kept.theme)
      ? kept.theme
      : matchMedia("(prefers-color-scheme: dark)").matches
        ? "dark"
        : "light",
  };
}

/** Keeps what is chosen now. */
export function remember(store) {
  try {
    localStorage.setItem(KEY, JSON.stringify({ language: store.get("language"), theme: store.get("theme") }));
  } catch {
    // A browser that keeps nothing shows the page all the same.
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    return {};
  }
}
