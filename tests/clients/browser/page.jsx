// assistant-ui and CopilotKit as a page has them: /?client=assistant-ui, data-stream or copilotkit, &tools for a tool,
// &runtime=URL for CopilotKit's own runtime between the page and the chat.

import {
  AssistantRuntimeProvider,
  AttachmentPrimitive,
  ComposerPrimitive,
  ErrorPrimitive,
  MessagePrimitive,
  SimpleImageAttachmentAdapter,
  ThreadPrimitive,
  useAssistantTool,
} from '@assistant-ui/react';
import { AssistantChatTransport, useChatRuntime } from '@assistant-ui/react-ai-sdk';
import { useDataStreamRuntime } from '@assistant-ui/react-data-stream';
import { HttpAgent } from '@ag-ui/client';
import { CopilotChat, CopilotKitProvider, useFrontendTool } from '@copilotkit/react-core/v2';
import { lastAssistantMessageIsCompleteWithToolCalls } from 'ai';
import { useState } from 'react';
import { createRoot } from 'react-dom/client';
import { z } from 'zod';

const asked = new URLSearchParams(location.search);
const weather = z.object({ city: z.string() });
const look = async () => '19 degrees';
const attachments = new SimpleImageAttachmentAdapter();

const Text = ({ text }) => <p data-testid="text">{text}</p>;
const Attachment = () => (
  <AttachmentPrimitive.Root data-testid="attached">
    <AttachmentPrimitive.Name />
  </AttachmentPrimitive.Root>
);

const Message = () => (
  <MessagePrimitive.Root data-testid="message">
    <MessagePrimitive.Parts components={{ Text }} />
    <MessagePrimitive.Error>
      <ErrorPrimitive.Root role="alert">
        <ErrorPrimitive.Message />
      </ErrorPrimitive.Root>
    </MessagePrimitive.Error>
  </MessagePrimitive.Root>
);

const Thread = () => (
  <ThreadPrimitive.Root>
    <ThreadPrimitive.Messages components={{ Message }} />
    <ComposerPrimitive.Root>
      <ComposerPrimitive.Attachments components={{ Attachment }} />
      <ComposerPrimitive.AddAttachment data-testid="attach">attach</ComposerPrimitive.AddAttachment>
      <ComposerPrimitive.Input data-testid="input" />
      <ComposerPrimitive.Send data-testid="send">send</ComposerPrimitive.Send>
      <ComposerPrimitive.Cancel data-testid="stop">stop</ComposerPrimitive.Cancel>
    </ComposerPrimitive.Root>
  </ThreadPrimitive.Root>
);

const AssistantTool = () => {
  useAssistantTool({ toolName: 'weather', description: 'Tells the weather', parameters: weather, execute: look });
  return null;
};

const Assistant = ({ runtime }) => (
  <AssistantRuntimeProvider runtime={runtime}>
    {asked.has('tools') && <AssistantTool />}
    <Thread />
  </AssistantRuntimeProvider>
);

const OverTheAISDK = () => (
  <Assistant
    runtime={useChatRuntime({
      transport: new AssistantChatTransport({ api: '/api/ai' }),
      sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
      adapters: { attachments },
    })}
  />
);

const OverADataStream = () => (
  <Assistant runtime={useDataStreamRuntime({ api: '/api/ai', adapters: { attachments } })} />
);

const agent = new HttpAgent({ url: '/api/ag-ui' });

const CopilotTool = () => {
  useFrontendTool({ name: 'weather', description: 'Tells the weather', parameters: weather, handler: look });
  return null;
};

const runtime = asked.get('runtime');
const server = runtime ? { runtimeUrl: runtime } : { selfManagedAgents: { default: agent } };
const images = { enabled: true };

// The chat shows no error of any server by itself.
const Copilot = () => {
  const [said, say] = useState('');
  return (
    <CopilotKitProvider {...server}>
      {asked.has('tools') && <CopilotTool />}
      <CopilotChat attachments={images} onError={({ error }) => say(error.message)} />
      <p role="alert">{said}</p>
    </CopilotKitProvider>
  );
};

const pages = { 'assistant-ui': OverTheAISDK, 'data-stream': OverADataStream };
const Page = pages[asked.get('client')] ?? Copilot;
createRoot(document.getElementById('root')).render(<Page />);
