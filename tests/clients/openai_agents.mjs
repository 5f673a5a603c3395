// OpenAI's agents, which speak Responses and run the tools themselves.
import { Agent, OpenAIResponsesModel, run, setTracingDisabled, tool } from '@openai/agents';
import OpenAI from 'openai';
import { format, options, picture, say, sayError, url, weather } from './say.mjs';

setTracingDisabled(true);
const leaving = new AbortController();
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-a-clients-own' });
const agent = new Agent({
  name: 'Assistant',
  model: new OpenAIResponsesModel(client, 'gpt-4o-mini'),
  tools: options.tools ? [tool({ ...weather, strict: false, execute: () => '19 degrees' })] : [],
  outputType: options.format ? { type: 'json_schema', name: format.name, strict: true, schema: format.schema } : 'text',
  toolUseBehavior: options.round ? 'run_llm_again' : 'stop_on_first_tool',
});
const content = [{ type: 'input_text', text: options.prompt ?? 'Hello' }];
if (picture) content.push({ type: 'input_image', image: picture });

async function chat() {
  const result = await run(agent, [{ role: 'user', content }], { stream: true, signal: leaving.signal });
  for await (const event of result) {
    if (options.abort && event.type === 'raw_model_stream_event' && event.data.type === 'output_text_delta') {
      leaving.abort();
      return say('aborted');
    }
  }
  await result.completed;
  for (const item of result.rawResponses.flatMap((response) => response.output)) {
    if (item.type === 'reasoning') say('reasoning', { text: item.content.map((part) => part.text).join('') });
    if (item.type === 'message') say('text', { text: item.content.map((part) => part.text).join('') });
    if (item.type === 'function_call') say('tool', { name: item.name, input: JSON.parse(item.arguments) });
  }
  say('end', { reason: 'completed', tokens: result.state.usage.totalTokens });
}

await chat().catch((error) => sayError(error));
