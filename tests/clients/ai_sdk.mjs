// The AI SDK's chat in a page, without the page: OPTIONS.package is ai5, ai6 or ai7.
import { options, picture, say, sayError, url, weather } from './say.mjs';

const { DefaultChatTransport, readUIMessageStream } = await import(options.package);
const { name, ...tool } = weather;
const transport = new DefaultChatTransport({
  api: `${url}/api/ai`,
  body: options.tools ? { tools: { [name]: tool } } : {},
});
const leaving = new AbortController();
let reason = null;

const parts = [{ type: 'text', text: options.prompt ?? 'Hello' }];
if (picture) parts.push({ type: 'file', mediaType: 'image/png', url: picture });

async function chat(messages) {
  const chunks = await transport.sendMessages({
    chatId: 'chat-1',
    messages,
    trigger: 'submit-message',
    messageId: undefined,
    abortSignal: leaving.signal,
  });
  const seen = chunks.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        if (chunk.type === 'finish') reason = chunk.finishReason;
        controller.enqueue(chunk);
      },
    }),
  );
  let last;
  for await (const message of readUIMessageStream({ stream: seen, terminateOnError: true })) {
    last = message;
    if (options.abort && message.parts.some((part) => part.type === 'text' && part.text)) {
      leaving.abort();
      return say('aborted');
    }
  }
  for (const part of last.parts) {
    if (part.type === 'reasoning') say('reasoning', { text: part.text });
    if (part.type === 'text') say('text', { text: part.text });
    if (part.type.startsWith('tool-')) say('tool', { name: part.type.slice(5), input: part.input });
  }
  const calls = last.parts.filter((part) => part.type.startsWith('tool-') && part.state === 'input-available');
  if (options.round && calls.length) {
    // As useChat does after addToolOutput.
    for (const call of calls) Object.assign(call, { state: 'output-available', output: '19 degrees' });
    return chat([...messages, last]);
  }
  return say('end', { reason, tokens: last.metadata.usage.totalTokens });
}

await chat([{ id: '1', role: 'user', parts }]).catch((error) => sayError(error, error.statusCode));
