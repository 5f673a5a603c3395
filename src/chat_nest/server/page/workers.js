// Workers of the page's own code. Trusted Types: a worker's address is code, and a policy may be made only once.

/** @type {any} */
let policy = null;

/** @param {string} url @returns {Worker} */
export function startWorker(url) {
  const { trustedTypes } = /** @type {any} */ (globalThis);
  if (trustedTypes) policy ??= trustedTypes.createPolicy("chat-nest", { createScriptURL: (text) => text });
  return new Worker(policy ? policy.createScriptURL(url) : url, { type: "module" });
}

/**
 * A worker that answers questions. It starts with the first one.
 * @param {string} url @returns {(question: any) => Promise<any>} returns the answer, or null if the worker can't run
 */
export function answering(url) {
  /** @type {Worker | null} */
  let worker = null;
  let count = 0;
  /** @type {Map<number, (answer: any) => void>} */
  const waiting = new Map();
  const start = () => {
    const made = startWorker(url);
    made.onmessage = ({ data: { id, answer } }) => {
      waiting.get(id)?.(answer);
      waiting.delete(id);
    };
    made.onerror = () => {
      worker = null; // the next question tries again
      for (const resolve of waiting.values()) resolve(null);
      waiting.clear();
    };
    return made;
  };
  return (question) => {
    worker ??= start();
    const id = (count += 1);
    worker.postMessage({ id, question });
    return new Promise((resolve) => waiting.set(id, resolve));
  };
}
