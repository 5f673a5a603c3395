// What cases.mjs begins a driver with, and what the driver prints: a line of JSON an event. OPTIONS may have:
//   format: ask for JSON by a schema     round: send the tool's result, and take the answer to it
//   abort: leave after the first text    tools: offer the tool "weather"    stream: false for a whole answer
//   prompt: the user's words ("Hello")   image: a PNG, in base64, that the user's message has
export let url, options, picture;

export function begin(...given) {
  [url, options] = given;
  picture = options.image ? `data:image/png;base64,${options.image}` : null;
}

export const weather = {
  name: 'weather',
  description: 'Tells the weather of a city',
  parameters: { type: 'object', properties: { city: { type: 'string' } } },
};

export const format = {
  type: 'json_schema',
  name: 'city',
  schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false },
};

export function say(event, fields = {}) {
  process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
}

// Say what a client told of a failure; nothing else may come afterwards.
export function sayError(error, status = error?.status) {
  say('error', { status: status ?? null, message: String(error?.message ?? error) });
}
