import OpenAI from 'openai';
import { format, options, picture, say, sayError, url, weather } from './say.mjs';

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-a-clients-own' });
const words = options.prompt ?? 'Hello';
const content = picture ? [{ type: 'text', text: words }, { type: 'image_url', image_url: { url: picture } }] : words;
const request = { model: 'gpt-4o-mini', messages: [{ role: 'user', content }] };
const { name, schema } = format;
if (options.format) request.response_format = { type: 'json_schema', json_schema: { name, schema } };
if (options.tools) request.tools = [{ type: 'function', function: weather }];
const tool = ({ function: { name, arguments: text } }) => say('tool', { name, input: JSON.parse(text) });

async function streamed(messages) {
  const stream = await client.chat.completions.create({
    ...request,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  let [text, reasoning, reason, usage] = ['', '', null, null];
  const calls = [];
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    const [choice] = chunk.choices;
    if (!choice) continue;
    reason = choice.finish_reason ?? reason;
    text += choice.delta.content ?? '';
    reasoning += choice.delta.reasoning_content ?? '';
    for (const piece of choice.delta.tool_calls ?? []) {
      calls[piece.index] ??= { id: piece.id, type: 'function', function: { name: piece.function.name, arguments: '' } };
      calls[piece.index].function.arguments += piece.function.arguments;
    }
    if (options.abort && text) {
      stream.controller.abort();
      return say('aborted');
    }
  }
  if (reasoning) say('reasoning', { text: reasoning });
  if (text) say('text', { text });
  calls.forEach(tool);
  if (options.round && calls.length) {
    const results = calls.map(({ id }) => ({ role: 'tool', tool_call_id: id, content: '19 degrees' }));
    return streamed([...messages, { role: 'assistant', content: text, tool_calls: calls }, ...results]);
  }
  return say('end', { reason, tokens: usage.total_tokens });
}

async function whole() {
  const { choices: [{ message, finish_reason: reason }], usage } = await client.chat.completions.create(request);
  if (message.reasoning_content) say('reasoning', { text: message.reasoning_content });
  say('text', { text: message.content ?? '' });
  (message.tool_calls ?? []).forEach(tool);
  say('end', { reason, tokens: usage.total_tokens });
}

if (options.models) {
  for await (const model of client.models.list()) say('model', { id: model.id });
} else {
  await (options.stream === false ? whole() : streamed(request.messages)).catch((error) => sayError(error));
}
