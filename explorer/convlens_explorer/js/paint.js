/**
 * Painting numbers as colours.
 *
 * @typedef {{low: number, high: number}} Range The values of a table's first and last colours.
 */

/**
 * Paints a plane, one pixel a value; CSS says how large it is seen (`image-rendering: pixelated`).
 * @param {HTMLCanvasElement} canvas Gets the plane's size.
 * @param {import("./plane.js").Plane} plane
 * @param {import("./colours.js").Table} table
 * @param {Range} range
 * @returns {boolean} Whether the canvas got another size, for which the browser takes new memory.
 */
export function paint(canvas, plane, table, range) {
  const { height, width } = plane;
  const sized = canvas.width !== width || canvas.height !== height;
  if (sized) Object.assign(canvas, { width, height });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.putImageData(pixels(plane, table, range), 0, 0);
  return sized;
}

/** A plane as image data, one pixel a value. */
export function pixels(plane, table, range) {
  const { height, width, bytes } = plane;
  const image = new ImageData(width, height);
  const target = new Uint32Array(image.data.buffer);
  const colours = Uint32Array.from(
    { length: 256 },
    (_, byte) => table[index(plane.offset + plane.scale * byte, range)],
  );
  for (let i = 0; i < target.length; i++) target[i] = colours[bytes[i]];
  return image;
}

/** Which of a table's 256 colours a value has. */
export function index(value, { low, high }) {
  if (!(high > low)) return 128;
  return Math.min(255, Math.max(0, Math.round(((value - low) / (high - low)) * 255)));
}

/** Where a value lies in a range, 0 … 1. */
export function share(value, range) {
  return index(value, range) / 255;
}

/** The range that is as wide below 0 as above, and holds both numbers. */
export function symmetric(low, high) {
  const bound = Math.max(Math.abs(low), Math.abs(high)) || 1;
  return { low: -bound, high: bound };
}

/** A number to read where there is little room: so many significant digits at most, with a true minus; −4.3e−5. */
export function figure(value, digits = 3) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "NaN";
  const size = Math.abs(value);
  const text =
    size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(digits - 1) : String(+value.toPrecision(digits));
  return text.replaceAll("-", "−");
}
