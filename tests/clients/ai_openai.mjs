// The AI SDK with OpenAI's provider as it comes: Responses, with references to earlier items.
import { createOpenAI } from '@ai-sdk/openai';
import { jsonSchema, Output, stepCountIs, streamText, tool } from 'ai7';
import { format, options, say, sayError, url, weather } from './say.mjs';

const provider = createOpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-a-clients-own' });
const leaving = new AbortController();

async function chat() {
  let failure = null;
  const offered = { description: weather.description, inputSchema: jsonSchema(weather.parameters) };
  const result = streamText({
    model: provider('gpt-4o-mini'),
    prompt: 'Hello',
    maxRetries: 0, // it asks again after any 429, whatever the answer says
    abortSignal: leaving.signal,
    tools: options.tools ? { weather: tool(options.round ? { ...offered, execute: () => '19 degrees' } : offered) } : undefined,
    stopWhen: stepCountIs(options.round ? 2 : 1),
    output: options.format ? Output.object({ schema: jsonSchema(format.schema) }) : undefined,
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
