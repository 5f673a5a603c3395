import Anthropic from '@anthropic-ai/sdk';
import { options, say, sayError, url, weather } from './say.mjs';

const client = new Anthropic({ baseURL: url, apiKey: 'sk-a-clients-own' });
const request = { model: 'gpt-4o-mini', max_tokens: 100, messages: [{ role: 'user', content: 'Hello' }] };
if (options.tools) {
  const { name, description, parameters } = weather;
  request.tools = [{ name, description, input_schema: parameters }];
}

async function streamed() {
  const stream = client.messages.stream(request);
  if (options.abort) {
    await new Promise((resolve) => stream.once('text', resolve));
    stream.on('error', () => {});
    stream.on('abort', () => {});
    stream.abort();
    return say('aborted');
  }
  return tell(await stream.finalMessage());
}

function tell(message) {
  for (const block of message.content) {
    if (block.type === 'thinking') say('reasoning', { text: block.thinking });
    if (block.type === 'text') say('text', { text: block.text });
    if (block.type === 'tool_use') say('tool', { name: block.name, input: block.input });
  }
  const { input_tokens: read, output_tokens: written } = message.usage;
  say('end', { reason: message.stop_reason, tokens: read + written });
}

const asked = options.stream === false ? client.messages.create(request).then(tell) : streamed();
await asked.catch((error) => sayError(error));
