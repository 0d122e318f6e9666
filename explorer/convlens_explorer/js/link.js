/** The state as an address, and back: everything that is needed to see the same again, in the part behind "#". */

const SCALES = ["unit", "module", "network"];
const DEFAULT_SCALE = "unit";
const FIRST = "first";

/**
 * @param {import("./store.js").State} state
 * @returns {string} "#model=tiny_vgg&image=espresso&view=conv&layer=conv_1_1&unit=3"
 */
export function toHash(state) {
  const { view, layer, channel, row, column, options } = state.place;
  const parts = {
    model: encode(state.model),
    version: state.version ? String(state.version) : "",
    image: state.chosen.map(encode).join(","),
    scale: state.scale === DEFAULT_SCALE ? "" : state.scale,
    details: state.details ? "1" : "",
    // An open explanation without a section is "read" too.
    read: state.article === null ? "" : encode(state.article || FIRST),
    view: encode(view ?? ""),
    layer: encode(layer ?? ""),
    unit: [channel, row, column].filter((number) => number !== undefined).join(","),
  };
  const named = Object.entries(options ?? {}).map(([name, value]) => [encode(`with-${name}`), encode(value)]);
  const said = [...Object.entries(parts), ...named].filter(([, value]) => value !== "");
  return `#${said.map((pair) => pair.join("=")).join("&")}`;
}

/**
 * What an address says of the state; what it does not say is left out, what is no sense is ignored.
 * @param {string} hash
 * @returns {Pick<import("./store.js").State, "model" | "version" | "chosen" | "scale" | "details" | "article" | "place">}
 */
export function fromHash(hash) {
  const said = new Map(
    hash
      .replace(/^#/, "")
      .split("&")
      .map((pair) => {
        const [name, ...value] = pair.split("=");
        return [decode(name), value.join("=")];
      }),
  );
  const raw = (name) => said.get(name) ?? "";
  const text = (name) => decode(raw(name));
  const [channel, row, column] = text("unit").split(",").map(whole);
  const options = [...said]
    .filter(([name]) => /^with-./.test(name))
    .map(([name, value]) => [name.slice(5), decode(value)]);
  const article = text("read");
  return {
    model: text("model"),
    version: whole(text("version")) ?? 0,
    chosen: raw("image").split(",").filter(Boolean).map(decode),
    scale: /** @type {any} */ (SCALES.includes(text("scale")) ? text("scale") : DEFAULT_SCALE),
    details: text("details") === "1",
    article: article === FIRST ? "" : article || null,
    place: present({
      view: text("view") || undefined,
      layer: text("layer") || undefined,
      channel,
      row,
      column,
      options: options.length ? Object.fromEntries(options) : undefined,
    }),
  };
}

function present(place) {
  return Object.fromEntries(Object.entries(place).filter(([, value]) => value !== undefined));
}

function whole(text) {
  return /^\d{1,9}$/.test(text) ? Number(text) : undefined;
}

/** As in the rest of an address, but what is plain to read there stays: / and :. */
function encode(text) {
  return encodeURIComponent(text).replaceAll("%2F", "/").replaceAll("%3A", ":");
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
