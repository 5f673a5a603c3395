// The browser's own EventSource, on the blog's endpoint. It connects again after the end, and must then be told to stop.
import { EventSource } from 'eventsource';
import { options, say, url } from './say.mjs';

const source = new EventSource(`${url}/chat?message=Hello`);
let text = '';
let ended = false;

source.addEventListener('chunk', (event) => {
  text += JSON.parse(event.data).text;
  if (options.abort) {
    source.close();
    say('aborted');
  }
});
source.addEventListener('done', () => {
  ended = true;
  say('text', { text });
});
source.addEventListener('error', (event) => {
  if (event.data) {
    source.close();
    say('error', { status: null, message: JSON.parse(event.data).error });
  } else if (source.readyState === EventSource.CLOSED && ended) {
    say('end', { reason: `closed by ${event.code}`, tokens: null });
  } else if (source.readyState === EventSource.CLOSED) {
    say('error', { status: event.code, message: String(event.message) });
  }
});
