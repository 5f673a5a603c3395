// The AI SDK on a server, with our OpenAI endpoint for a provider.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { jsonSchema, streamText, tool } from 'ai6';
import { options, say, sayError, url, weather } from './say.mjs';

const provider = createOpenAICompatible({ name: 'chat-nest', baseURL: `${url}/v1`, includeUsage: true });
const leaving = new AbortController();

async function chat() {
  let failure = null;
  const result = streamText({
    model: provider('gpt-4o-mini'),
    prompt: 'Hello',
    maxRetries: 0, // it asks again after any 429, whatever the answer says
    abortSignal: leaving.signal,
    tools: options.tools
      ? { weather: tool({ description: weather.description, inputSchema: jsonSchema(weather.parameters) }) }
      : undefined,
    onError: ({ error }) => {
      failure = error;
    },
  });
  let [text, reasoning] = ['', ''];
  const calls = [];
  for await (const part of result.fullStream) {
    if (part.type === 'text-delta') text += part.text;
    if (part.type === 'reasoning-delta') reasoning += part.text;
    if (part.type === 'tool-call') calls.push(part);
    if (options.abort && text) {
      leaving.abort();
      return say('aborted');
    }
  }
  if (failure) throw failure;
  if (reasoning) say('reasoning', { text: reasoning });
  say('text', { text });
  for (const call of calls) say('tool', { name: call.toolName, input: call.input });
  const usage = await result.usage;
  say('end', { reason: await result.finishReason, tokens: usage.totalTokens });
}

await chat().catch((error) => sayError(error, error.statusCode));
