/** Pointing at things, with a mouse, a pen or a finger. */

/**
 * Calls when the pointer moves over an element or presses it. Browsers also report a move where the page moved under a
 * pointer at rest; that is nobody's pointing.
 * @param {import("./scope.js").Scope} scope
 * @param {Element} element
 * @param {(event: PointerEvent) => void} act
 */
export function onPointing(scope, element, act) {
  scope.listen(element, "pointermove", (event) => {
    if (event.movementX || event.movementY) act(event);
  });
  scope.listen(element, "pointerdown", act);
}
