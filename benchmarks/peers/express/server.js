// What people write with Express and the openai SDK, as the npm package chat-nest-server does it: one limiter and one
// budget in memory, an estimate of the tokens, a write an event.   node server.js PORT PROVIDER_URL
import cors from "cors";
import express from "express";
import OpenAI from "openai";

const [port, baseURL] = process.argv.slice(2);
const openai = new OpenAI({ apiKey: "none", baseURL });
const LIMITS = { requestsPerMinute: 1e8, tokensPerRequest: 1e6, tokensPerDay: 1e15, messages: 12, output: 4096 };
let minute = { begun: 0, requests: 0 };
let day = { date: "", tokens: 0 };

const estimate = (messages) => Math.ceil(messages.reduce((sum, message) => sum + message.content.length, 0) / 4);
const valid = (messages) =>
  Array.isArray(messages) &&
  messages.length > 0 &&
  messages.every((m) => (m?.role === "user" || m?.role === "assistant") && typeof m.content === "string");

const app = express();
app.use(cors());
app.use(express.json());
app.post("/api/chat", async (req, res) => {
  if (!valid(req.body?.messages)) return res.status(400).json({ error: "Invalid messages payload" });
  const now = Date.now();
  if (now - minute.begun >= 60_000) minute = { begun: now, requests: 0 };
  if (++minute.requests > LIMITS.requestsPerMinute) return res.status(429).json({ error: "Rate limit exceeded." });
  const messages = req.body.messages.slice(-LIMITS.messages);
  const tokens = estimate(messages) + LIMITS.output;
  if (tokens > LIMITS.tokensPerRequest) return res.status(429).json({ error: "Request too large." });
  const date = new Date(now).toISOString().slice(0, 10);
  if (day.date !== date) day = { date, tokens: 0 };
  if (day.tokens + tokens > LIMITS.tokensPerDay) return res.status(429).json({ error: "Daily AI budget exceeded." });
  day.tokens += tokens;
  const abort = new AbortController();
  res.on("close", () => abort.abort());
  res.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache", Connection: "keep-alive" });
  res.write("event: start\ndata: \n\n");
  try {
    const stream = await openai.chat.completions.create(
      { model: "gpt-4o-mini", messages, max_tokens: LIMITS.output, temperature: 0.7, stream: true },
      { signal: abort.signal },
    );
    for await (const chunk of stream) {
      const token = chunk.choices[0]?.delta?.content;
      if (token) res.write(`event: token\ndata: ${JSON.stringify(token)}\n\n`);
    }
    res.end("event: done\ndata: \n\n");
  } catch {
    if (!abort.signal.aborted) res.end('event: error\ndata: {"message":"AI request failed"}\n\n');
  }
});
app.listen(Number(port), "127.0.0.1");
