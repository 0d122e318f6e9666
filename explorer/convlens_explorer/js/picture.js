/** Pictures before they are sent: what is an image, what is too large, and how the browser makes it smaller. */

const MEGAPIXEL = 1e6;
// A picture of more pixels is not even opened: as RGBA, 64 million take 256 MB of the browser's memory.
const MOST_MEGAPIXELS = 64;
// What is larger than this is sent smaller: the server takes 16 MB of JSON, and a network's input has far fewer pixels.
const MOST_BYTES = 8 * 2 ** 20;
const MOST_SENT_MEGAPIXELS = 24;
const SENT_SIDE = 2048;

/** Why a picture is not taken; its message is the end of a key among the page's texts. */
export class Refused extends Error {
  /** @param {string} why @param {Record<string, string | number>} values */
  constructor(why, values) {
    super(why);
    this.values = values;
  }
}

/**
 * Looks at a file and gives what to send: the file itself, or for formats that the server does not read and for
 * large pictures a PNG or JPEG that the browser makes of it. Throws Refused.
 * @param {Blob} file
 * @param {string} name For the sentence.
 * @returns {Promise<Blob>}
 */
export async function inspect(file, name) {
  if (!file.size) throw new Refused("empty", { name });
  const head = new Uint8Array(await file.slice(0, 512 * 1024).arrayBuffer());
  const { format, width, height } = sizeOf(head);
  const megapixels = (width * height) / MEGAPIXEL;
  if (megapixels > MOST_MEGAPIXELS) {
    throw new Refused("large", { name, width, height, megapixels: Math.round(megapixels), most: MOST_MEGAPIXELS });
  }
  if (format && file.size <= MOST_BYTES && megapixels <= MOST_SENT_MEGAPIXELS) return file;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Refused("type", { name });
  }
  try {
    return await drawn(bitmap, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}

/** A picture that the browser shows, as a file to send. Throws Refused where its pixels may not be read. */
export async function fitted(image) {
  if ((image.naturalWidth * image.naturalHeight) / MEGAPIXEL > MOST_MEGAPIXELS) {
    throw new Refused("large", {
      name: image.src,
      width: image.naturalWidth,
      height: image.naturalHeight,
      megapixels: Math.round((image.naturalWidth * image.naturalHeight) / MEGAPIXEL),
      most: MOST_MEGAPIXELS,
    });
  }
  return await drawn(image, image.naturalWidth || SENT_SIDE, image.naturalHeight || SENT_SIDE);
}

async function drawn(source, width, height) {
  const scale = Math.min(1, SENT_SIDE / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  // A small picture stays exact; of a large one JPEG is a tenth the size.
  const small = canvas.width * canvas.height <= MEGAPIXEL / 4;
  return await canvas.convertToBlob(small ? { type: "image/png" } : { type: "image/jpeg", quality: 0.95 });
}

/**
 * Format and size by a file's first bytes.
 * @param {Uint8Array} head
 * @returns {{format: string, width: number, height: number}} "" and 0 × 0 where it is none that the server reads.
 */
export function sizeOf(head) {
  const data = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const text = (at, length) => String.fromCharCode(...head.subarray(at, at + length));
  try {
    if (text(1, 3) === "PNG") return { format: "png", width: data.getUint32(16), height: data.getUint32(20) };
    if (head[0] === 0xff && head[1] === 0xd8) return { format: "jpeg", ...jpegSize(data) };
    if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP") return { format: "webp", ...webpSize(data, text(12, 4)) };
  } catch (error) {
    // A RangeError: the file ends before it says its size. The server will say what is wrong with it.
    if (!(error instanceof RangeError)) throw error;
    return { format: "broken", width: 0, height: 0 };
  }
  return { format: "", width: 0, height: 0 };
}

/** Of the first frame header; the segments before it are passed over. */
function jpegSize(data) {
  let at = 2;
  for (;;) {
    const marker = data.getUint8(at + 1);
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return { width: data.getUint16(at + 7), height: data.getUint16(at + 5) };
    at += 2 + data.getUint16(at + 2);
  }
}

function webpSize(data, chunk) {
  if (chunk === "VP8X") return { width: 1 + uint24(data, 24), height: 1 + uint24(data, 27) };
  if (chunk === "VP8L") {
    const bits = data.getUint32(21, true);
    return { width: 1 + (bits & 0x3fff), height: 1 + ((bits >> 14) & 0x3fff) };
  }
  return { width: data.getUint16(26, true) & 0x3fff, height: data.getUint16(28, true) & 0x3fff };
}

function uint24(data, at) {
  return data.getUint16(at, true) | (data.getUint8(at + 2) << 16);
}
