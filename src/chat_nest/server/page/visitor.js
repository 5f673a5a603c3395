// <script src="https://chat.example/visitor.js"></script> on a page of your own: chatNest.ask() chats as a visitor. Where a
// page of another origin has no cookies, it keeps a visitor's token, and it solves a proof of work when one is due.
(() => {
  const home = new URL(".", document.currentScript.src);
  const kept = `visitor of ${home}`;
  const keep = async (response) => sessionStorage.setItem(kept, (await response.json()).token);

  /** Send JSON. @param {string} path @param {any} [body] @returns {Promise<Response>} */
  async function post(path, body) {
    const token = sessionStorage.getItem(kept);
    const headers = { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) };
    const response = await fetch(new URL(path, home), { method: "POST", headers, body: JSON.stringify(body) });
    if (response.ok) return response;
    const refused = await response.json().catch(() => ({}));
    if (response.status === 401) sessionStorage.removeItem(kept); // the next question gets another token
    if (refused.challenge?.kind !== "proof_of_work") throw new Error(refused.error ?? `HTTP ${response.status}`);
    await keep(await post("api/challenge", { solution: await solve(refused.challenge.challenge) }));
    return post(path, body);
  }

  /** Solve a proof of work: ALTCHA, version 2. @returns {Promise<string>} */
  async function solve(challenge) {
    const { nonce, salt, cost, keyLength, keyPrefix } = challenge.parameters;
    const bytes = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
    const how = { name: "PBKDF2", hash: "SHA-256", salt: bytes(salt), iterations: cost };
    for (let counter = 0; ; counter += 1) {
      const password = bytes(nonce + counter.toString(16).padStart(8, "0"));
      const key = await crypto.subtle.importKey("raw", password, "PBKDF2", false, ["deriveBits"]);
      const found = new Uint8Array(await crypto.subtle.deriveBits(how, key, keyLength * 8));
      const derivedKey = Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
      if (derivedKey.startsWith(keyPrefix)) return btoa(JSON.stringify({ challenge, solution: { counter, derivedKey } }));
    }
  }

  /**
   * Send a chat, the body of POST /api/chat, and call `on.token`, `on.queued` and others with the data of each event.
   * @returns {Promise<any>} the data of `done`. Rejects with an Error whose message is for the visitor.
   */
  async function ask(chat, on = {}) {
    if (!sessionStorage.getItem(kept)) await keep(await post("api/visit"));
    const response = await post("api/chat", chat);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      const events = (text + read.value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const [, name, json] = /^event: (\w+)\ndata: ?(.*)/.exec(event) ?? [];
        const data = json ? JSON.parse(json) : null;
        if (name === "error") throw new Error(data.message);
        if (name === "done") return data;
        on[name]?.(data);
      }
    }
    throw new Error("The answer was cut.");
  }

  globalThis.chatNest = { ask };
})();
