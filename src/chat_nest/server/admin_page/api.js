// Requests to the operators' listener, with the operator's key in a header.

import { keptForTab } from "./tab-storage.js";
import { word } from "./words.js";

/** The operator's key. */
export const { get: key, set: setKey } = keptForTab("chat-nest-operator-key");

/** An error of the server. */
export class Failure extends Error {
  /** @param {string} message @param {{status?: number, code?: string, field?: string, problems?: string[]}} [fields] */
  constructor(message, fields = {}) {
    super(message);
    this.status = fields.status ?? 0;
    this.code = fields.code ?? "";
    this.problems = fields.problems ?? [];
  }
}

let signedOut = () => {};
let skew = 0;

/** @param {() => void} act what happens when the server refuses the key */
export const onRefused = (act) => void (signedOut = act);

/** The server's time, in milliseconds since 1970. */
export const serverNow = () => Date.now() + skew;

/**
 * `fetch` of a path below admin/v1. Throws Failure.
 * @param {string} path @param {RequestInit} [options] @returns {Promise<Response>}
 */
export async function open(path, options = {}) {
  const headers = { ...options.headers, authorization: `Bearer ${key()}` };
  const response = await fetch(`admin/v1/${path}`, { ...options, headers, cache: "no-store" }).catch((error) => {
    throw error.name === "AbortError" ? error : new Failure(word("unreachable"), { code: "unreachable" });
  });
  const date = Date.parse(response.headers.get("date") ?? "");
  if (date) skew = Math.abs(date - Date.now()) > 1_500 ? date - Date.now() : 0; // a header has whole seconds
  if (response.ok) return response;
  const fields = await response.json().catch(() => ({}));
  if (response.status === 401) signedOut();
  throw new Failure(fields.error ?? word("failed.status", { status: response.status }), { status: response.status, ...fields });
}

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
export const read = async (path, signal) => (await open(path, { signal })).json();

/** @param {string} path @param {Record<string, any>} body @param {string} [method] @returns {Promise<any>} */
export const post = async (path, body, method = "POST") =>
  (await open(path, { method, headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();
