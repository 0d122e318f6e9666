/** Our service, asked by the Connect protocol in JSON. */

import { envelope, fromBase64, opened } from "./wire.js";

const SERVICE = "convlens.v1.ConvLens/";
const PATIENCE_MS = 8000;

/** Reasons that say that the model cannot answer now. */
const GONE = new Set(["MODEL_NOT_FOUND", "VERSION_NOT_FOUND", "MODEL_NOT_READY", "NOT_LOADED"]);

/** Why a call failed: the server's own words, or that it cannot be reached (code "unreachable"). */
export class ApiError extends Error {
  /**
   * @param {string} code Connect's: "not_found", "invalid_argument", …; "unreachable" where nothing answers.
   * @param {string} reason Of google.rpc.ErrorInfo: "NOT_AN_IMAGE", …; "" if it has none.
   * @param {string} message
   */
  constructor(code, reason, message) {
    super(message);
    this.code = code;
    this.reason = reason;
  }

  /** Whether the server is away, or not ready. */
  get away() {
    return this.code === "unreachable" || this.code === "unavailable";
  }

  /** Whether the model is not there, or not loaded. */
  get gone() {
    return GONE.has(this.reason);
  }
}

/**
 * Asks a method that answers once.
 * @param {string} method Its name, e.g. "GetModel".
 * @param {object} body The request as proto3 JSON, in lowerCamelCase.
 * @param {{signal?: AbortSignal}} [options] An aborted call rejects with the signal's AbortError.
 * @returns {Promise<any>} The response as proto3 JSON: int64 and uint64 are strings, bytes base64, empty fields absent.
 */
export async function call(method, body, { signal } = {}) {
  const response = await post(method, "application/json", JSON.stringify(body), signal);
  if (!response.ok) throw await refusal(response);
  return await reached(() => response.json());
}

/**
 * Asks a method that answers with a stream; resolves at its end.
 * @param {string} method
 * @param {object} body
 * @param {(message: any) => void | Promise<void>} onMessage Waited for before the next.
 * @param {{signal?: AbortSignal}} [options]
 */
export async function stream(method, body, onMessage, { signal } = {}) {
  const response = await post(method, "application/connect+json", envelope(body), signal);
  if (!response.ok || !response.body) throw await refusal(response);
  let ended = false;
  for await (const { message, last } of received(response.body)) {
    if (!last) await onMessage(message);
    else if (message.error) throw failure(message.error);
    else ended = true;
  }
  if (!ended) throw unreachable(new Error("the answer broke off"));
}

/** The messages of a stream; a network that breaks off is an ApiError, but not what goes wrong with a message here. */
async function* received(body) {
  try {
    yield* opened(body);
  } catch (error) {
    throw error instanceof TypeError ? unreachable(error) : error;
  }
}

/**
 * Asks a method that answers layer by layer in chunks, and puts the chunks together.
 * @param {string} method
 * @param {object} body
 * @param {(head: any, data: Uint8Array) => void | Promise<void>} onLayer Gets the first chunk and all the bytes.
 * @param {AbortSignal} [signal]
 */
export async function layers(method, body, onLayer, signal) {
  let head = null;
  let data = new Uint8Array();
  const take = async (message) => {
    const offset = Number(message.byteOffset ?? 0);
    if (offset === 0) {
      head = message;
      data = new Uint8Array(Number(message.totalBytes ?? 0));
    }
    const part = fromBase64(message.data ?? "");
    data.set(part, offset);
    if (offset + part.length === data.length) await onLayer(head, data);
  };
  await stream(method, body, take, { signal });
}

/**
 * The server's metrics, in Prometheus' text format. Throws ApiError, also if they do not come soon: they cost the server
 * next to nothing, so it is stuck, or the network is.
 * @param {{signal?: AbortSignal}} [options]
 */
export async function metrics({ signal } = {}) {
  const soon = AbortSignal.timeout(PATIENCE_MS);
  const either = signal ? AbortSignal.any([signal, soon]) : soon;
  const response = await reached(() => fetch("metrics", { signal: either }));
  if (!response.ok) throw await refusal(response);
  return await reached(() => response.text());
}

async function post(method, type, body, signal) {
  const headers = { "Content-Type": type, "Connect-Protocol-Version": "1" };
  return await reached(() => fetch(SERVICE + method, { method: "POST", headers, body, signal }));
}

/**
 * What asking gives; every failure of the network, for which browsers say TypeError, is an ApiError, and so is an end of
 * patience.
 * @template T
 * @param {() => Promise<T>} asking A fetch, or the import of a module.
 * @returns {Promise<T>}
 */
export async function reached(asking) {
  try {
    return await asking();
  } catch (error) {
    throw error instanceof TypeError || error?.name === "TimeoutError" ? unreachable(error) : error;
  }
}

async function refusal(response) {
  try {
    return failure(await response.json());
  } catch {
    const code = response.status === 413 ? "resource_exhausted" : "unknown";
    return new ApiError(code, "", `HTTP ${response.status} ${response.statusText}`);
  }
}

function failure({ code, message = "", details = [] }) {
  const info = details.find((detail) => detail.type === "google.rpc.ErrorInfo");
  return new ApiError(code, info ? reasonOf(fromBase64(info.value)) : "", message);
}

/** Field 1 of an ErrorInfo, the only one that the page needs. */
function reasonOf(bytes) {
  if (bytes[0] !== 10) return "";
  return new TextDecoder().decode(bytes.subarray(2, 2 + bytes[1]));
}

function unreachable(error) {
  return new ApiError("unreachable", "", error.message);
}
