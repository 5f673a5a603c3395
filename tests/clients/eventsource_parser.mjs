// fetch and eventsource-parser, on the native endpoint: what many a page does by hand.
import { EventSourceParserStream } from 'eventsource-parser/stream';
import { options, say, sayError, url } from './say.mjs';

const leaving = new AbortController();

async function chat() {
  const response = await fetch(`${url}/api/chat`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ messages: [{ role: 'user', content: options.prompt ?? 'Hello' }] }),
    signal: leaving.signal,
  });
  if (!response.ok) throw Object.assign(new Error((await response.json()).error), { status: response.status });
  let text = '';
  const events = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
  for await (const { event, data } of events) {
    if (event === 'token') text += JSON.parse(data);
    if (event === 'error') throw new Error(JSON.parse(data).message);
    if (event === 'done') {
      const { finish_reason: reason, usage } = JSON.parse(data);
      say('text', { text });
      say('end', { reason, tokens: usage.total_tokens });
    }
    if (options.abort && text) {
      leaving.abort();
      return say('aborted');
    }
  }
}

await chat().catch((error) => sayError(error));
