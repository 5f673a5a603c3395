// LangChain's chat models. OPTIONS.model is `openai` (Chat Completions), `responses` or `anthropic`.
import { ChatAnthropic } from '@langchain/anthropic';
import { HumanMessage, ToolMessage } from '@langchain/core/messages';
import { ChatOpenAI } from '@langchain/openai';
import { format, options, picture, say, sayError, url, weather } from '../say.mjs';

// By default it waits for Retry-After, which a limit per minute has, and asks again.
const known = { model: 'gpt-4o-mini', apiKey: 'sk-a-clients-own', maxRetries: 0 };
const leaving = new AbortController();

function chatModel() {
  if (options.model === 'anthropic') return new ChatAnthropic({ ...known, anthropicApiUrl: url, maxTokens: 100 });
  const useResponsesApi = options.model === 'responses';
  return new ChatOpenAI({ ...known, configuration: { baseURL: `${url}/v1` }, useResponsesApi });
}

// Returns the whole message, or null after an abort.
async function ask(model, messages) {
  let whole = null;
  for await (const chunk of await model.stream(messages, { signal: leaving.signal })) {
    whole = whole ? whole.concat(chunk) : chunk;
    if (options.abort && whole.text) {
      leaving.abort();
      return null;
    }
  }
  return whole;
}

function tell(message) {
  const reasoning = message.contentBlocks.filter((block) => block.type === 'reasoning').map((block) => block.reasoning);
  if (reasoning.length) say('reasoning', { text: reasoning.join('') });
  if (message.text) say('text', { text: message.text });
  for (const call of message.tool_calls) say('tool', { name: call.name, input: call.args });
}

async function chat() {
  let model = chatModel();
  const content = [{ type: 'text', text: options.prompt ?? 'Hello' }];
  if (picture) content.push({ type: 'image_url', image_url: { url: picture } });
  const messages = [new HumanMessage({ content })];
  if (options.format) {
    const structured = model.withStructuredOutput(format.schema, { name: format.name, method: 'jsonSchema' });
    say('text', { text: JSON.stringify(await structured.invoke(messages)) });
    return;
  }
  if (options.tools) model = model.bindTools([{ type: 'function', function: weather }]);
  let message = await ask(model, messages);
  if (!message) return say('aborted');
  tell(message);
  if (options.round) {
    const results = message.tool_calls.map((call) => new ToolMessage({ content: '19 degrees', tool_call_id: call.id }));
    message = await ask(model, [...messages, message, ...results]);
    tell(message);
  }
  const { finish_reason: finished, stop_reason: stopped, status } = { ...message.additional_kwargs, ...message.response_metadata };
  say('end', { reason: finished ?? stopped ?? status, tokens: message.usage_metadata?.total_tokens });
}

await chat().catch((error) => sayError(error));
