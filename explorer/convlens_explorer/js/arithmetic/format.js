/** How numbers are written: a true minus, and a fixed number of places so that columns line up. */

/** With so many places after the point; whole numbers of examples may ask for none. */
export function fixed(value, places = 2) {
  if (value === Infinity) return "∞";
  if (value === -Infinity) return "−∞";
  const text = Math.abs(value).toFixed(places);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

/** As `fixed`, but what is not 0 is not written as 0: 4.3 × 10⁻⁵. */
export function telling(value, places) {
  const text = fixed(value, places);
  if (!value || /[1-9∞]/.test(text)) return text;
  const [digits, power] = Math.abs(value).toExponential(1).split("e");
  const raised = [...power].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(sign)] ?? "⁻").join("");
  return `${value < 0 ? "−" : ""}${digits} × 10${raised}`;
}

/** Places that tell numbers of such a size apart: two from 1 on, more below. @param {number} most The largest magnitude. */
export function placesFor(most) {
  if (most >= 1) return 2;
  return most >= 0.1 ? 3 : 4;
}

/** A whole number with a true minus. */
export function whole(value) {
  return fixed(value, 0);
}

/** A share of one, in per cent. */
export function percent(value, places = 1) {
  return `${fixed(value * 100, places)} %`;
}

/** A kernel on one line, as rows: [0.12, −0.30; 0.05, 0.91]. */
export function kernelText(values, columns) {
  const rows = [];
  for (let start = 0; start < values.length; start += columns) {
    rows.push(Array.from(values.slice(start, start + columns), (value) => fixed(value)).join(", "));
  }
  return `[${rows.join("; ")}]`;
}
