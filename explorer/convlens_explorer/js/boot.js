/**
 * Loads the page. A network that breaks off meanwhile leaves a module out, which a browser does not ask for twice, so the
 * page begins anew; imports nothing itself, for that could be left out too.
 */

const AGAIN_MS = 1000;

try {
  await import("./main.js");
} catch (error) {
  // A TypeError is a matter of the network; for anything else beginning anew would not help.
  if (error instanceof TypeError) {
    setTimeout(() => location.reload(), AGAIN_MS);
  } else {
    document.body.textContent = `convlens cannot start in this browser: ${error.message}`;
    throw error;
  }
}

export {};
