// The server's challenge of a visitor: a proof of work, solved in a worker, or the widget of a service, in a frame.

import { element } from "./dom.js";
import { Failure, ask, setVisit } from "./run.js";
import { startWorker } from "./workers.js";
import { config, language } from "./words.js";

/** @typedef {{progress: (share: number) => void, widget: (frame: HTMLElement) => void}} View */

/**
 * Solve the challenge and send the solution. Afterwards the refused message can be sent again.
 * @param {any} challenge the field of the refusal @param {AbortSignal} signal @param {View} view
 */
export async function pass(challenge, signal, view) {
  const solved = challenge.kind === "proof_of_work" ? work(challenge.challenge, signal, view) : widget(challenge, signal, view);
  const body = JSON.stringify({ solution: await solved });
  const response = await ask("api/challenge", { method: "POST", headers: { "content-type": "application/json" }, body, signal });
  const fields = await response.json().catch(() => ({}));
  if (!response.ok) throw new Failure(fields.error ?? "", { status: response.status, ...fields });
  if (fields.token) setVisit(fields.token);
}

/** In a frame of another site there are no cookies: there the visitor's id is a token. */
export async function visit() {
  if (!config.visitors || window.top === window) return;
  const response = await ask("api/visit", { method: "POST" }).catch(() => null);
  if (response?.ok) setVisit((await response.json()).token);
}

/** @param {AbortSignal} signal @param {(end: {resolve: (value: any) => void, reject: (reason: any) => void}) => void} begin */
function until(signal, begin) {
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
    begin({ resolve, reject });
  });
}

/** @returns {Promise<string>} ALTCHA's payload */
async function work(challenge, signal, view) {
  const { parameters } = challenge;
  const worker = startWorker("challenge-worker.js");
  view.progress(0);
  try {
    const solution = await until(signal, ({ resolve, reject }) => {
      worker.onmessage = ({ data }) => {
        if (data.solution) resolve(data.solution);
        else if (data.failed) reject(new Failure("", { code: "challenge_insecure" }));
        else view.progress(Math.min(data.tried / parameters.data.most, 1));
      };
      worker.onerror = () => reject(new Failure("", { code: "challenge_failed" }));
      worker.postMessage(parameters);
    });
    return btoa(JSON.stringify({ challenge, solution }));
  } finally {
    worker.terminate();
  }
}

/** The frame has a policy of its own, so that the service's script runs in no other part of the page. @returns {Promise<string>} */
async function widget(challenge, signal, view) {
  const known = JSON.stringify({ ...challenge, language });
  const frame = element("iframe", { class: "challenge", src: `challenge.html#${encodeURIComponent(known)}`, title: challenge.kind });
  let listener;
  try {
    return await until(signal, ({ resolve, reject }) => {
      listener = ({ data, origin, source }) => {
        if (origin !== location.origin || source !== frame.contentWindow) return;
        if (data.solution) resolve(data.solution);
        else if (data.failed) reject(new Failure("", { code: "challenge_unavailable" }));
        else if (data.height) frame.style.height = `${data.height}px`;
      };
      addEventListener("message", listener);
      view.widget(frame);
    });
  } finally {
    removeEventListener("message", listener);
    frame.remove();
  }
}
