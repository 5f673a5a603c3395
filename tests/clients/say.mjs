// How every driver is called and what it prints: node DRIVER URL OPTIONS, and a line of JSON an event. OPTIONS may have:
//   abort: leave after the first text    tools: offer the tool "weather"    stream: false for a whole answer
//   retries: how often the client may ask again (its own default otherwise)
export const url = process.argv[2];
export const options = JSON.parse(process.argv[3] ?? '{}');
export const weather = {
  name: 'weather',
  description: 'Tells the weather of a city',
  parameters: { type: 'object', properties: { city: { type: 'string' } } },
};

export function say(event, fields = {}) {
  process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
}

// Say what a client told of a failure; nothing else may come afterwards.
export function sayError(error, status = error?.status) {
  say('error', { status: status ?? null, message: String(error?.message ?? error) });
}
