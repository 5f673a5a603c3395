import { HttpAgent } from '@ag-ui/client';
import { options, say, sayError, url, weather } from './say.mjs';

const words = options.prompt ?? 'Hello';
const source = { type: 'data', value: options.image, mimeType: 'image/png' };
const content = options.image ? [{ type: 'text', text: words }, { type: 'image', source }] : words;
const agent = new HttpAgent({
  url: `${url}/api/ag-ui`,
  threadId: 'thread-1',
  initialMessages: [{ id: '1', role: 'user', content }],
});
let failure = null;
let usage = null;
let left = false;

const subscriber = {
  onTextMessageContentEvent() {
    if (options.abort && !left) {
      left = true;
      agent.abortRun();
    }
  },
  onRunErrorEvent({ event }) {
    failure = event;
  },
  onRunFinishedEvent({ event }) {
    usage = event.usage;
  },
};

async function chat(told = 1) {
  await agent.runAgent({ tools: options.tools ? [weather] : [] }, subscriber);
  if (left) return say('aborted');
  if (failure) return sayError(failure);
  for (const message of agent.messages.slice(told)) {
    if (message.role === 'reasoning') say('reasoning', { text: message.content });
    if (message.role === 'assistant' && message.content) say('text', { text: message.content });
    for (const call of message.toolCalls ?? []) {
      say('tool', { name: call.function.name, input: JSON.parse(call.function.arguments || '{}') });
    }
  }
  const { toolCalls: calls } = agent.messages.at(-1);
  if (options.round && calls) {
    for (const { id } of calls) {
      agent.addMessage({ id: `result-${id}`, role: 'tool', toolCallId: id, content: '19 degrees' });
    }
    return chat(agent.messages.length);
  }
  return say('end', { reason: null, tokens: usage[0].totalTokens });
}

console.error = () => {}; // it writes there what it also throws
await chat().catch((error) => (left ? say('aborted') : sayError(error)));
