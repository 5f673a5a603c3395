// CopilotKit's runtime, which stands between its page and the chat: /openai/PORT asks the chat on that port by the
// OpenAI adapter, /ag-ui/PORT by AG-UI. Prints its own port, and ends with its standard input.

import { createServer } from 'node:http';
import { HttpAgent } from '@ag-ui/client';
import { CopilotRuntime, copilotRuntimeNodeHttpEndpoint, ExperimentalEmptyAdapter, OpenAIAdapter } from '@copilotkit/runtime';
import { BuiltInAgent } from '@copilotkit/runtime/v2';
import OpenAI from 'openai';

const runtimes = new Map();

function runtime(path, kind, url) {
  const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-a-clients-own' });
  const adapter = kind === 'openai' ? new OpenAIAdapter({ openai, model: 'gpt-4o-mini' }) : new ExperimentalEmptyAdapter();
  const agent =
    kind === 'openai'
      ? new BuiltInAgent({ model: adapter.getLanguageModel(), maxRetries: 0 }) // the AI SDK asks again after any 429
      : new HttpAgent({ url: `${url}/api/ag-ui` });
  const endpoint = `/${path}/api/copilotkit`;
  return copilotRuntimeNodeHttpEndpoint({
    endpoint,
    runtime: new CopilotRuntime({ agents: { default: agent } }),
    serviceAdapter: adapter,
  });
}

const server = createServer((request, response) => {
  const [, kind, port] = request.url.split('/');
  const path = `${kind}/${port}`;
  if (!runtimes.has(path)) runtimes.set(path, runtime(path, kind, `http://127.0.0.1:${port}`));
  runtimes.get(path)(request, response);
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('end', () => process.exit()).resume();
