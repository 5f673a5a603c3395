import OpenAI from 'openai';
import { format, options, picture, say, sayError, url, weather } from './say.mjs';

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-a-clients-own' });
const words = options.prompt ?? 'Hello';
const content = [{ type: 'input_text', text: words }, { type: 'input_image', image_url: picture, detail: 'auto' }];
const request = { model: 'gpt-4o-mini', input: picture ? [{ role: 'user', content }] : words };
if (options.tools) request.tools = [{ type: 'function', ...weather, strict: false }];
if (options.format) request.text = { format };

function tell(response) {
  for (const item of response.output) {
    if (item.type === 'reasoning') say('reasoning', { text: item.summary.map((part) => part.text).join('') });
    if (item.type === 'message') say('text', { text: item.content.map((part) => part.text).join('') });
    if (item.type === 'function_call') say('tool', { name: item.name, input: JSON.parse(item.arguments) });
  }
  return response;
}

async function streamed(asked) {
  const stream = await client.responses.create({ ...asked, stream: true });
  let [text, final] = ['', null];
  for await (const event of stream) {
    if (event.type === 'response.output_text.delta') text += event.delta;
    if (event.type === 'response.completed' || event.type === 'response.incomplete') final = event.response;
    if (options.abort && text) {
      stream.controller.abort();
      say('aborted');
      return null;
    }
  }
  if (text !== final.output.flatMap((item) => item.content ?? []).map((part) => part.text).join('')) throw Error(text);
  return tell(final);
}

async function chat() {
  const ask = options.stream === false ? async (asked) => tell(await client.responses.create(asked)) : streamed;
  let response = await ask(request);
  if (options.round) {
    const calls = response.output.filter((item) => item.type === 'function_call');
    const input = calls.map(({ call_id }) => ({ type: 'function_call_output', call_id, output: '19 degrees' }));
    response = await ask({ ...request, input, previous_response_id: response.id });
  }
  if (response) say('end', { reason: response.status, tokens: response.usage.total_tokens });
}

await chat().catch((error) => sayError(error));
