// Mastra's agent, with the URL as its model.
import { Agent } from '@mastra/core/agent';
import { createTool } from '@mastra/core/tools';
import { z } from 'zod';
import { options, picture, say, sayError, url, weather } from '../say.mjs';

console.error = () => {}; // it logs each refusal
const leaving = new AbortController();
const tool = createTool({
  id: weather.name,
  description: weather.description,
  inputSchema: z.object({ city: z.string().optional() }),
  execute: async () => '19 degrees',
});
const agent = new Agent({
  id: 'assistant',
  name: 'Assistant',
  instructions: [],
  model: { id: 'nest/gpt-4o-mini', url: `${url}/v1`, apiKey: 'sk-a-clients-own', api: options.model },
  tools: options.tools ? { [weather.name]: tool } : {},
});

const content = [{ type: 'text', text: options.prompt ?? 'Hello' }];
if (picture) content.push({ type: 'image', image: picture });

async function chat() {
  const result = await agent.stream([{ role: 'user', content }], {
    abortSignal: leaving.signal,
    maxSteps: options.round ? 2 : 1,
    structuredOutput: options.format ? { schema: z.object({ city: z.string() }) } : undefined,
  });
  let [text, reasoning] = ['', ''];
  const calls = [];
  for await (const { type, payload } of result.fullStream) {
    if (type === 'text-delta') text += payload.text;
    if (type === 'reasoning-delta') reasoning += payload.text;
    if (type === 'tool-call') calls.push(payload);
    if (type === 'error') throw payload.error;
    if (options.abort && text) {
      leaving.abort();
      return say('aborted');
    }
  }
  if (reasoning) say('reasoning', { text: reasoning });
  say('text', { text });
  for (const call of calls) say('tool', { name: call.toolName, input: call.args });
  say('end', { reason: await result.finishReason, tokens: (await result.usage).totalTokens });
}

await chat().catch((error) => sayError(error, error.statusCode));
