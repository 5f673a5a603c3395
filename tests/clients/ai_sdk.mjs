// The AI SDK's chat in a page, without the page: OPTIONS.package is ai5, ai6 or ai7.
import { options, say, sayError, url, weather } from './say.mjs';

const { DefaultChatTransport, readUIMessageStream } = await import(options.package);
const { name, ...tool } = weather;
const transport = new DefaultChatTransport({
  api: `${url}/api/ai`,
  body: options.tools ? { tools: { [name]: tool } } : {},
});
const leaving = new AbortController();
let reason = null;

async function chat() {
  const chunks = await transport.sendMessages({
    chatId: 'chat-1',
    messages: [{ id: '1', role: 'user', parts: [{ type: 'text', text: 'Hello' }] }],
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
  say('end', { reason, tokens: last.metadata.usage.totalTokens });
}

await chat().catch((error) => sayError(error, error.statusCode));
