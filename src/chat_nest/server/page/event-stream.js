// The parser of Server-Sent Events that Chat Nest writes.

/**
 * Server-Sent Events from a response's body; data is parsed JSON, or null where it is empty.
 * @param {ReadableStream<Uint8Array>} body @returns {AsyncGenerator<{name: string, data: any, id: string}>}
 */
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const frames = text.split("\n\n");
    text = frames.pop() ?? "";
    for (const frame of frames) {
      const fields = { event: "message", data: "", id: "" };
      for (const line of frame.split("\n")) {
        const [, field, content] = /^(event|data|id): ?(.*)$/s.exec(line) ?? [];
        if (field) fields[field] = content;
      }
      yield { name: fields.event, data: fields.data ? JSON.parse(fields.data) : null, id: fields.id };
    }
  }
}
