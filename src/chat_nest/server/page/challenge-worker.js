// Solves a proof of work by the ALTCHA protocol, version 2: try counters from 0 until the derived key has the prefix.

const TELL_MS = 100;

const bytes = (text) => Uint8Array.from(text.match(/../g), (pair) => Number.parseInt(pair, 16));
const hex = (found) => Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");

async function solve({ nonce, salt, cost, keyLength, keyPrefix }) {
  const password = new Uint8Array(nonce.length / 2 + 4);
  password.set(bytes(nonce));
  const counterAt = new DataView(password.buffer, nonce.length / 2);
  const how = { name: "PBKDF2", hash: "SHA-256", salt: bytes(salt), iterations: cost };
  const wanted = bytes(keyPrefix);
  let told = performance.now();
  for (let counter = 0; ; counter += 1) {
    counterAt.setUint32(0, counter);
    const key = await crypto.subtle.importKey("raw", password, "PBKDF2", false, ["deriveBits"]);
    const derived = new Uint8Array(await crypto.subtle.deriveBits(how, key, keyLength * 8));
    if (wanted.every((byte, index) => derived[index] === byte)) return { counter, derivedKey: hex(derived) };
    if (performance.now() - told < TELL_MS) continue;
    told = performance.now();
    postMessage({ tried: counter });
  }
}

addEventListener("message", async ({ data }) => {
  try {
    postMessage({ solution: await solve(data) });
  } catch {
    postMessage({ failed: true }); // without https a browser has no crypto.subtle
  }
});
