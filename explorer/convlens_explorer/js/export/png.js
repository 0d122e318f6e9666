/** What is shown, as a PNG: the elements with all their styles and pictures go into an SVG, which a canvas draws. */

// Browsers' canvases end at 16,384 pixels a side, some phones' at 16 million in all.
const MOST_SIDE = 8192;
const MOST_PIXELS = 16e6;

/**
 * @param {HTMLElement} element Is drawn whole, also what is scrolled out of sight.
 * @param {number} width CSS pixels.
 * @param {number} height
 * @returns {Promise<Blob>}
 */
export async function png(element, width, height) {
  const wished = Math.min(2, MOST_SIDE / width, MOST_SIDE / height, Math.sqrt(MOST_PIXELS / (width * height)));
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(await asSvg(element, width, height))}`;
  await image.decode();
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * wished)), Math.max(1, Math.round(height * wished)));
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return await canvas.convertToBlob({ type: "image/png" });
}

async function asSvg(element, width, height) {
  const copy = /** @type {HTMLElement} */ (element.cloneNode(true));
  copy.style.transform = "none";
  await pictures(element, copy);
  settings(element, copy);
  const root = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  root.setAttribute("width", String(width));
  root.setAttribute("height", String(height));
  root.dataset.theme = document.documentElement.dataset.theme;
  root.setAttribute("lang", document.documentElement.lang);
  const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
  style.textContent = [...document.styleSheets]
    .flatMap((sheet) => [...sheet.cssRules].map((rule) => rule.cssText))
    .join("\n");
  const frame = document.createElementNS("http://www.w3.org/2000/svg", "foreignObject");
  frame.setAttribute("width", "100%");
  frame.setAttribute("height", "100%");
  const body = document.createElementNS("http://www.w3.org/1999/xhtml", "div");
  body.className = "exported";
  body.append(copy);
  frame.append(body);
  root.append(style, frame);
  return new XMLSerializer().serializeToString(root);
}

/** Canvases and pictures from elsewhere become pictures that hold their own data. */
async function pictures(element, copy) {
  const canvases = copy.querySelectorAll("canvas");
  [...element.querySelectorAll("canvas")].forEach((canvas, i) => {
    const image = new Image(canvas.width, canvas.height);
    image.src = canvas.width && canvas.height ? canvas.toDataURL() : "";
    for (const { name, value } of canvases[i].attributes)
      if (!["width", "height"].includes(name)) image.setAttribute(name, value);
    image.classList.add("was-canvas");
    canvases[i].replaceWith(image);
  });
  const images = copy.querySelectorAll("img:not(.was-canvas)");
  await Promise.all([...element.querySelectorAll("img")].map((image, i) => inlined(image, images[i])));
}

async function inlined(image, copy) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
  if (!canvas.width || !canvas.height) return;
  canvas.getContext("2d")?.drawImage(image, 0, 0);
  copy.src = canvas.toDataURL();
}

/** What a reader has set is no part of the markup. */
function settings(element, copy) {
  const copies = copy.querySelectorAll("input, select");
  element.querySelectorAll("input, select").forEach((control, i) => {
    if (control instanceof HTMLSelectElement) copies[i].options[control.selectedIndex]?.setAttribute("selected", "");
    else {
      copies[i].setAttribute("value", control.value);
      copies[i].toggleAttribute("checked", control.checked);
    }
  });
}
