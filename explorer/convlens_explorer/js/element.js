/** The only way in which the page makes elements. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} tag May name classes: "div.panel.wide".
 * @param {Record<string, any>} [attributes] Those in PROPERTIES are set as properties, `on` is a map of listeners that
 *   live as long as the element, `style` a map of CSS properties (custom ones too), `dataset` one of data attributes;
 *   true is an attribute without value; false, null and undefined are left out.
 * @param {...(Node | string | number | null | undefined | false | Array)} children
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag.split(".")[0]), tag, attributes, children);
}

/** An SVG element; arguments as of `el`. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag.split(".")[0]), tag, attributes, children);
}

/** Puts children in the place of those that an element has. */
export function replace(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

const PROPERTIES = new Set([
  "value",
  "checked",
  "disabled",
  "selected",
  "width",
  "height",
  "srcObject",
  "open",
  "textContent",
]);

function fill(element, tag, attributes, children) {
  const [, ...classes] = tag.split(".");
  if (classes.length) element.classList.add(...classes);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "style") setStyle(element, value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "on")
      for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (PROPERTIES.has(name) && element instanceof HTMLElement) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

function setStyle(element, values) {
  for (const [property, value] of Object.entries(values)) element.style.setProperty(property, value);
}

function nodes(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}
