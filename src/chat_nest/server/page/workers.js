// Workers of the page's own code. Trusted Types: a worker's address is code, and a policy may be made only once.

/** @type {any} */
let policy = null;

/** @param {string} url @returns {Worker} */
export function startWorker(url) {
  const { trustedTypes } = /** @type {any} */ (globalThis);
  if (trustedTypes) policy ??= trustedTypes.createPolicy("chat-nest", { createScriptURL: (text) => text });
  return new Worker(policy ? policy.createScriptURL(url) : url, { type: "module" });
}
