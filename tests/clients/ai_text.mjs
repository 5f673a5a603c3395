// The AI SDK on a server. OPTIONS.provider is the package of @ai-sdk that it uses.
import { format, options, picture, say, sayError, url, weather } from './say.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false; // of models that it does not know
const { provider } = options;
const makers = {
  anthropic: ['createAnthropic', { baseURL: `${url}/v1` }],
  openai: ['createOpenAI', { baseURL: `${url}/v1` }], // Responses, with references to earlier items
  'open-responses': ['createOpenResponses', { name: 'chat-nest', url: `${url}/v1/responses` }],
  'openai-compatible': [
    'createOpenAICompatible',
    { name: 'chat-nest', baseURL: `${url}/v1`, includeUsage: true, supportsStructuredOutputs: true },
  ],
};
const [make, settings] = makers[provider];
const model = (await import(`@ai-sdk/${provider}`))[make]({ apiKey: 'sk-a-clients-own', ...settings });
// Each provider package has its own version of the SDK.
const { jsonSchema, Output, stepCountIs, streamText, tool } = await import(provider === 'openai-compatible' ? 'ai6' : 'ai7');
const leaving = new AbortController();

const content = [{ type: 'text', text: options.prompt ?? 'Hello' }];
// ai 7 has files of all kinds; ai 6 has a part of its own for images.
if (picture && provider === 'openai-compatible') content.push({ type: 'image', image: picture });
else if (picture) content.push({ type: 'file', mediaType: 'image/png', data: picture });

async function chat() {
  let failure = null;
  const offered = { description: weather.description, inputSchema: jsonSchema(weather.parameters) };
  const result = streamText({
    model: model('gpt-4o-mini'),
    messages: [{ role: 'user', content }],
    // It knows from the name which of Anthropic's models have structured output, and takes a tool for others.
    providerOptions: { anthropic: { structuredOutputMode: 'outputFormat' } },
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
