import Anthropic from '@anthropic-ai/sdk';
import { format, options, say, sayError, url, weather } from './say.mjs';

const client = new Anthropic({ baseURL: url, apiKey: 'sk-a-clients-own' });
const source = { type: 'base64', media_type: 'image/png', data: options.image };
const content = [{ type: 'text', text: options.prompt ?? 'Hello' }, ...(options.image ? [{ type: 'image', source }] : [])];
const request = { model: 'gpt-4o-mini', max_tokens: 100, messages: [{ role: 'user', content }] };
if (options.format) request.output_config = { format: { type: 'json_schema', schema: format.schema } };
if (options.tools) {
  const { name, description, parameters } = weather;
  request.tools = [{ name, description, input_schema: parameters }];
}

async function streamed(messages) {
  const stream = client.messages.stream({ ...request, messages });
  if (options.abort) {
    await new Promise((resolve) => stream.once('text', resolve));
    stream.on('error', () => {});
    stream.on('abort', () => {});
    stream.abort();
    return say('aborted');
  }
  const message = tell(await stream.finalMessage());
  const calls = message.content.filter((block) => block.type === 'tool_use');
  if (!options.round || !calls.length) return null;
  const results = calls.map(({ id }) => ({ type: 'tool_result', tool_use_id: id, content: '19 degrees' }));
  return streamed([...messages, { role: 'assistant', content: message.content }, { role: 'user', content: results }]);
}

function tell(message) {
  for (const block of message.content) {
    if (block.type === 'thinking') say('reasoning', { text: block.thinking });
    if (block.type === 'text') say('text', { text: block.text });
    if (block.type === 'tool_use') say('tool', { name: block.name, input: block.input });
  }
  const { input_tokens: read, output_tokens: written } = message.usage;
  if (!options.round || message.stop_reason !== 'tool_use') say('end', { reason: message.stop_reason, tokens: read + written });
  return message;
}

const asked = options.stream === false ? client.messages.create(request).then(tell) : streamed(request.messages);
await asked.catch((error) => sayError(error));
