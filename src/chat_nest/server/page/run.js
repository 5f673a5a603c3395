// One answer from the server: POST /api/chat and, if the server keeps answers, the reconnect after a lost connection.

import { events } from "./event-stream.js";
import { keptForTab } from "./tab-storage.js";

const STALL_MS = 45_000; // the server pings every 15 s: three missed pings are a lost connection
const RECONNECTS_MS = [0, 500, 1_000, 2_000, 4_000, 8_000]; // the pause before each try; then it gives up
const LEAVING_MS = 5_000;
const STOPPED = Symbol("stopped");
const GONE_ON = new Set(["runs_unavailable", "request_in_progress"]); // the answer itself goes on

/** When the browser began to leave the page, if it did. Some then end its connections while its code still runs. */
let left = -Infinity;
addEventListener("beforeunload", () => (left = performance.now()));

/** Wait for the end of a page that is left, which never knows more of an answer than the next page does. */
async function outliveLeaving() {
  const rest = left + LEAVING_MS - performance.now();
  if (rest > 0) await new Promise((wake) => setTimeout(wake, rest));
}

/** An error of the server, with its fields. */
export class Failure extends Error {
  /** @param {string} message @param {Record<string, any>} [fields] */
  constructor(message, fields = {}) {
    super(message);
    this.fields = { code: "", ...fields };
  }
}

/** The visitor stopped the answer. */
export class Stopped extends Error {}

/** The key or token of this tab. */
export const { get: key, set: setKey } = keptForTab("chat-nest-key");
/** The visitor's token, where cookies can't go. */
const { get: visitToken, set: setVisit } = keptForTab("chat-nest-visit");
export { setVisit };

/** `fetch` of the chat's own paths, with the key. @param {string} path @param {RequestInit} [options] */
export function ask(path, options = {}) {
  const credential = key() || visitToken();
  return fetch(path, { ...options, headers: { ...options.headers, ...(credential && { authorization: `Bearer ${credential}` }) } });
}

async function refusal(response) {
  const fields = await response.json().catch(() => ({}));
  return new Failure(fields.error ?? "", { status: response.status, ...fields });
}

export class Run {
  /**
   * @param {import("./store.js").Kept} kept
   * @param {{began: (id: string) => void, text: (content: string) => void, lost: () => void, back: () => void,
   *   queued: (place: {position: number, estimate_seconds: number | null}) => void,
   *   challenged: (challenge: any, signal: AbortSignal) => Promise<void>}} view
   *   `text` has the whole text so far, without what was there before
   */
  constructor(kept, view) {
    this.kept = kept;
    this.view = view;
    this.content = "";
    this.whole = ""; // the text with the last numbered event
    this.last = "";
    this.tries = 0;
    this.reached = false;
    this.stopping = false;
    this.challenged = false;
    this.controller = new AbortController();
    this.watchdog = 0;
    this.heard = 0; // when something came last
  }

  /** Follow the answer to its end. Returns the data of `done`; throws Failure or Stopped. */
  async follow() {
    if (this.stopping && !this.kept.id) throw new Stopped(); // before it was sent
    try {
      for (; ; this.tries += 1) {
        if (this.tries) await this.pause();
        try {
          return await this.read(await this.connect());
        } catch (error) {
          const goesOn = !(error instanceof Failure) || GONE_ON.has(error.fields.code);
          const { signal } = this.controller;
          if (signal.reason === STOPPED || error.fields?.code === "stopped") throw new Stopped();
          await outliveLeaving();
          if (await this.challenge(error)) continue;
          if (!goesOn || !this.kept.resumable || this.tries >= RECONNECTS_MS.length) throw error;
          this.content = this.whole; // what came after its last number comes again
        }
      }
    } catch (error) {
      if (error instanceof Failure || error instanceof Stopped) throw error;
      if (this.controller.signal.reason === STOPPED) throw new Stopped();
      throw new Failure("", { code: this.reached ? "lost" : "unreachable" });
    } finally {
      this.unwatch();
    }
  }

  /** Solve the challenge of a refusal, once. @returns {Promise<boolean>} whether to send the request again, at once */
  async challenge({ fields }) {
    if (fields?.code !== "challenge_required" || !fields.challenge || this.challenged) return false;
    this.challenged = true;
    this.unwatch();
    await this.view.challenged(fields.challenge, this.controller.signal);
    this.tries = -1;
    return true;
  }

  connect() {
    const { id, key: idempotency, body } = this.kept;
    this.controller = new AbortController();
    this.watch();
    const { signal } = this.controller;
    if (id) return ask(`api/chat/${id}/stream`, { headers: this.last ? { "last-event-id": this.last } : {}, signal, cache: "no-store" });
    const headers = { "content-type": "application/json", ...(idempotency && { "idempotency-key": idempotency }) };
    return ask("api/chat", { method: "POST", headers, body, signal });
  }

  /** @param {Response} response */
  async read(response) {
    this.reached = true;
    if ((response.status === 404 && this.kept.id) || response.headers.has("idempotency-replayed")) {
      throw new Failure("", { code: "gone" });
    }
    if (!response.ok) throw await refusal(response);
    if (response.status === 204 || !response.body) return {};
    for await (const { name, data, id } of events(response.body)) {
      if (name === "error") throw new Failure(data.message, data);
      this.watch();
      if (name === "queued") this.view.queued(data);
      else this.view.back();
      if (name === "done") return data ?? {};
      if (name === "start") this.begin(data?.id ?? "");
      if (name !== "token") continue;
      this.content += data;
      this.tries = 0;
      if (id) [this.last, this.whole] = [id, this.content];
      this.view.text(this.content);
    }
    throw new TypeError("the stream ended without its last event");
  }

  /** The answer has its id: from now on it can be followed and stopped. @param {string} id */
  begin(id) {
    [this.content, this.whole, this.last] = ["", "", ""]; // start, or start again
    if (!this.kept.resumable) return;
    Object.assign(this.kept, { id, body: "" });
    this.view.began(id);
    if (this.stopping) this.stopThere();
  }

  /** A connection on which nothing arrives for a while is lost. A token sets no timer: it only notes when it came. */
  watch() {
    this.heard = Date.now();
    this.watchdog ||= setTimeout(() => this.check(), STALL_MS);
  }

  check() {
    const rest = this.heard + STALL_MS - Date.now();
    this.watchdog = rest > 0 ? setTimeout(() => this.check(), rest) : 0;
    if (rest <= 0) this.controller.abort();
  }

  unwatch() {
    clearTimeout(this.watchdog);
    this.watchdog = 0;
  }

  async pause() {
    this.view.lost();
    await new Promise((wake) => {
      this.controller = new AbortController();
      this.controller.signal.addEventListener("abort", wake);
      setTimeout(wake, RECONNECTS_MS[this.tries - 1]);
    });
    this.controller.signal.throwIfAborted();
  }

  /** Stop the answer: at the server, or by disconnecting. The second call always disconnects. @returns {Promise<boolean>} */
  async stop() {
    const again = this.stopping;
    this.stopping = true;
    if (again || !this.kept.resumable) this.controller.abort(STOPPED);
    else if (this.kept.id) return this.stopThere();
    return true;
  }

  async stopThere() {
    const signal = AbortSignal.timeout(5_000);
    const response = await ask(`api/chat/${this.kept.id}/stop`, { method: "POST", signal, keepalive: true }).catch(() => null);
    if (response?.ok || response?.status === 404) {
      this.controller.abort(STOPPED);
      return true;
    }
    this.stopping = false;
    return false;
  }

  /** Stop reading; the answer goes on. */
  leave() {
    this.controller.abort(STOPPED);
  }
}
