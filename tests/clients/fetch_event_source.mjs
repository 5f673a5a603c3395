// @microsoft/fetch-event-source, on the native endpoint. It is for browsers: these are the parts of one that it touches.
import { options, say, sayError, url } from './say.mjs';

globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = await import('@microsoft/fetch-event-source');
const leaving = new AbortController();
let text = '';

const asked = fetchEventSource(`${url}/api/chat`, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ messages: [{ role: 'user', content: options.prompt ?? 'Hello' }] }),
  signal: leaving.signal,
  openWhenHidden: true,
  async onopen(response) {
    if (!response.ok) throw Object.assign(new Error((await response.json()).error), { status: response.status });
  },
  onmessage({ event, data }) {
    if (event === 'token') text += JSON.parse(data);
    if (event === 'error') throw new Error(JSON.parse(data).message);
    if (event === 'done') {
      const { finish_reason: reason, usage } = JSON.parse(data);
      say('text', { text });
      say('end', { reason, tokens: usage.total_tokens });
    }
    if (options.abort && text) {
      leaving.abort();
      say('aborted');
    }
  },
  onerror(error) {
    throw error; // or it asks again
  },
});
await asked.catch((error) => sayError(error));
