/** How values travel in Connect's JSON: bytes as base64, streams as envelopes. */

// Younger browsers have it built in, and much faster.
const builtIn = /** @type {any} */ (Uint8Array);

/** @param {string} text base64 @returns {Uint8Array} */
export function fromBase64(text) {
  if (builtIn.fromBase64) return builtIn.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** @param {Uint8Array} bytes @returns {string} base64 */
export function toBase64(bytes) {
  if (builtIn.fromBase64) return /** @type {any} */ (bytes).toBase64();
  let binary = "";
  // fromCharCode takes as many arguments as the stack has room for: 32,768 are safe everywhere.
  for (let i = 0; i < bytes.length; i += 32768) binary += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(binary);
}

const END_OF_STREAM = 2;

/** One message in Connect's envelope: a byte of flags, four of length, the message. */
export function envelope(message) {
  const body = new TextEncoder().encode(JSON.stringify(message));
  const bytes = new Uint8Array(5 + body.length);
  new DataView(bytes.buffer).setUint32(1, body.length);
  bytes.set(body, 5);
  return bytes;
}

/**
 * The messages of a body of envelopes.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{message: object, last: boolean}>} The last one is the end of the stream: {} or {error}.
 */
export async function* opened(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  /** @type {Uint8Array[]} */
  let parts = [];
  let held = 0;
  const take = (count) => {
    const all = parts.length === 1 ? parts[0] : joined(parts, held);
    held -= count;
    parts = held ? [all.subarray(count)] : [];
    return all.subarray(0, count);
  };
  let length = -1;
  let flags = 0;
  try {
    for (;;) {
      while (held >= (length < 0 ? 5 : length)) {
        if (length < 0) {
          const head = take(5);
          flags = head[0];
          length = new DataView(head.buffer, head.byteOffset).getUint32(1);
        } else {
          const message = JSON.parse(decoder.decode(take(length)));
          length = -1;
          yield { message, last: (flags & END_OF_STREAM) !== 0 };
        }
      }
      const { done, value } = await reader.read();
      if (done) return;
      parts.push(value);
      held += value.length;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function joined(parts, size) {
  const all = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
