/**
 * Loads the page. A network that breaks off meanwhile leaves a module out, which a browser does not ask for twice, so the
 * page begins anew; imports nothing itself, for that could be left out too.
 */

const AGAIN_MS = 1000;
const MOST = 5;
const WITHIN_MS = 600_000;

/**
 * Loads the page again, if it is to help: a TypeError is what browsers say of the network, but it may be a module's own,
 * which would have the page begin anew for ever.
 * @param {unknown} error Of an import.
 * @returns {boolean} Whether it will; not more than 5 times in 10 minutes at one address.
 */
export function beginsAnew(error) {
  const times = (history.state?.begun ?? []).filter((time) => time > Date.now() - WITHIN_MS);
  if (!(error instanceof TypeError) || times.length >= MOST) return false;
  history.replaceState({ begun: [...times, Date.now()] }, "");
  // Not of a scope: it is to outlast all of the page.
  setTimeout(() => location.reload(), AGAIN_MS);
  return true;
}

import("./main.js").catch((error) => {
  if (beginsAnew(error)) return;
  document.body.textContent = `convlens cannot start: ${error.message}`;
  throw error;
});
