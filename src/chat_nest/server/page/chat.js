// The page of a Chat Nest server: one conversation, held by this page alone and streamed from POST /api/chat.
// Whatever a model writes is shown with textContent or a text node, so HTML, scripts and links in it stay inert.

const STALL_MS = 45_000; // the server pings every 15 s: three missed pings are a lost connection
const RECONNECTS_MS = [0, 500, 1_000, 2_000, 4_000, 8_000]; // the pauses before each try; then it is given up
const SAVED = "chat-nest";
const HISTORY = { messages: 40, characters: 60_000 }; // the server trims to the model's budget; this only bounds a body

const byId = (id) => document.getElementById(id);
const [scroller, log, welcome, status] = ["scroller", "log", "welcome", "status"].map(byId);
const [composer, prompt, send, stop] = ["composer", "prompt", "send", "stop"].map(byId);
const number = (value) => value.toLocaleString("en");

let messages = []; // what is sent: {role, content}
let run = null; // the answer in progress: see `answering`
let resumable = false; // whether the server keeps an answer whose reader is away for a moment
let charged = null; // tokens used today, as the server last said
let limit = null; // tokens a day
let atEnd = true; // whether the reader follows the end of the log
let scrolledTo = 0;

const STOPPED = Symbol("stopped");
const GONE = { message: "This answer is not kept any more, so the rest of it can't be shown.", code: "gone" };
const AGAIN = new Set(["runs_unavailable", "request_in_progress"]); // of an answer that goes on

class Failure extends Error {
  constructor(message, { code = "", retry_after: retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { code, retryAfter });
  }
}

// Server-Sent Events from a response's body, as {name, data, id}; data is parsed JSON, or null where it is empty.
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const frames = text.split("\n\n");
    text = frames.pop();
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

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const said = body.error ?? `The server answered ${response.status}.`;
  return new Failure(body.field ? `${said}: ${body.field} ${body.detail}` : said, body);
}

// The conversation so far, without its oldest messages where it has grown too long for one request.
function history() {
  let room = HISTORY.characters;
  const recent = messages.slice(-HISTORY.messages);
  const first = recent.findLastIndex((message) => (room -= message.content.length) < 0);
  return recent.slice(Math.min(first + 1, recent.length - 1));
}

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

// Keep the end of the log in sight, unless the reader has scrolled up from it.
function follow() {
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}

function show(role, content) {
  const node = element("article", `message ${role}`);
  const text = document.createTextNode(content);
  const words = element("div", "words");
  words.append(text);
  node.append(element("h3", "unseen", role === "user" ? "You" : "Answer"), words);
  log.append(node);
  welcome.hidden = true;
  atEnd = true;
  follow();
  return { node, text };
}

// A line under an answer. `kind` is "cost" or "problem".
function note(node, kind, text) {
  const line = element("p", kind, text);
  node.append(line);
  follow();
  return line;
}

// Ask for an answer to the conversation as it stands, and show it as it comes.
function ask() {
  const key = resumable ? Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-") : "";
  return answering({ id: "", last: "", content: "", key });
}

// Show one answer from what is known of it. `kept` is as much of its text as was complete with event `last` of run `id`.
// Where the server keeps answers, a lost connection is made again: the run is followed from there on, or, where its id
// did not arrive, the request is sent again with its key, which the server answers with the same run.
async function answering(kept) {
  const { node, text } = show("assistant", kept.content);
  const answer = { role: "assistant", content: kept.content };
  const body = JSON.stringify({ messages: history() });
  const own = { node, answer, kept, stopping: false, controller: new AbortController() };
  let frame = 0;
  const paint = () => {
    frame = 0;
    text.data = answer.content;
    follow();
  };
  const read = async (response) => {
    if (response.status === 404 && kept.id) throw new Failure(GONE.message, GONE);
    if (!response.ok) throw await refusal(response);
    if (response.headers.has("idempotency-replayed")) throw new Failure(GONE.message, GONE);
    if (response.status === 204) return {};
    for await (const { name, data, id } of events(response.body)) {
      if (name === "error") throw new Failure(data.message, data);
      watch(own);
      connected(node);
      if (name === "done") return data ?? {};
      if (name === "start") begun(own, data?.id ?? "");
      if (name !== "token") continue;
      answer.content += data;
      own.tries = 0;
      if (id) Object.assign(kept, { content: answer.content, last: id });
      frame ||= requestAnimationFrame(paint);
    }
    throw new Error("an end without its event");
  };
  writing(own, node, true);
  messages.push(answer);
  save();
  let reached = Boolean(kept.id);
  try {
    for (own.tries = reached ? 1 : 0; ; own.tries += 1) {
      try {
        if (own.tries) await reconnecting(own);
        const response = await connection(own, body);
        reached = true;
        finished(node, answer, await read(response));
        return;
      } catch (error) {
        const goesOn = !(error instanceof Failure) || AGAIN.has(error.code);
        if (own.controller.signal.reason === STOPPED || error.code === "stopped") throw STOPPED;
        if (!isKept(own) || !goesOn || own.tries >= RECONNECTS_MS.length) throw error;
        answer.content = kept.content; // what came after its last number comes again
      }
    }
  } catch (cause) {
    connected(node);
    const lost = reached ? "The connection was lost before the answer was complete." : "The server can't be reached.";
    if (cause === STOPPED) stopped(node, answer);
    else if (cause instanceof Failure) failed(node, answer, cause);
    else failed(node, answer, new Failure(lost), isKept(own) ? kept : null);
  } finally {
    clearTimeout(own.watchdog);
    cancelAnimationFrame(frame);
    paint();
    writing(own, node, false);
    save();
  }
}

// The response that brings the answer, from its beginning or from where it was left.
function connection(own, body) {
  const { id, last, key } = own.kept;
  own.controller = new AbortController();
  watch(own);
  const { signal } = own.controller;
  if (id) {
    const headers = last ? { "last-event-id": last } : {};
    return fetch(`api/chat/${id}/stream`, { headers, signal });
  }
  const headers = { "content-type": "application/json", ...(key && { "idempotency-key": key }) };
  return fetch("api/chat", { method: "POST", headers, body, signal });
}

// A connection on which nothing arrives for a while is lost.
function watch(own) {
  clearTimeout(own.watchdog);
  own.watchdog = setTimeout(() => own.controller.abort(), STALL_MS);
}

// The run has its id: it can be followed from now on, and stopped by name.
function begun(own, id) {
  if (!resumable && !isKept(own)) return;
  Object.assign(own.kept, { id, last: "", content: "" });
  own.answer.content = ""; // it begins, perhaps again
  save();
  if (own.stopping) stopRun(own);
}

const isKept = ({ kept }) => Boolean(kept.key || kept.id);

async function reconnecting(own) {
  const { node, tries } = own;
  status.textContent = "Reconnecting";
  if (!node.querySelector(".reconnecting")) note(node, "reconnecting", "Reconnecting…");
  await new Promise((wake) => {
    own.controller = new AbortController();
    own.controller.signal.addEventListener("abort", wake);
    setTimeout(wake, RECONNECTS_MS[tries - 1]);
  });
  own.controller.signal.throwIfAborted();
}

function connected(node) {
  const line = node.querySelector(".reconnecting");
  if (!line) return;
  line.remove();
  if (node.classList.contains("writing")) status.textContent = "Writing an answer";
}

// Stop it where it runs, and then stop reading it.
async function stopRun(own) {
  const until = AbortSignal.timeout(5_000);
  const options = { method: "POST", signal: until, keepalive: true };
  const response = await fetch(`api/chat/${own.kept.id}/stop`, options).catch(() => null);
  if (response?.ok || response?.status === 404) {
    own.controller.abort(STOPPED);
  } else {
    own.stopping = false;
    note(own.node, "problem", "It could not be stopped. Please try again.");
  }
}

function halt() {
  if (!run) return;
  const again = run.stopping;
  run.stopping = true;
  if (again || !isKept(run)) run.controller.abort(STOPPED); // leaving stops it, or nothing does
  else if (run.kept.id) stopRun(run);
}

// What a reload needs is kept by the browser for this tab, where the server keeps answers.
function save() {
  if (!resumable) return;
  const rest = run && !run.stopping && messages.at(-1) === run.answer ? run : null;
  const done = rest ? messages.slice(0, -1) : messages;
  try {
    sessionStorage.setItem(SAVED, JSON.stringify({ messages: done, kept: rest?.kept ?? null }));
  } catch {
    // The browser keeps nothing: a reload begins anew.
  }
}

function restore() {
  let saved = null;
  try {
    saved = JSON.parse(sessionStorage.getItem(SAVED));
  } catch {
    return;
  }
  if (!saved?.messages.length) return;
  resumable = true;
  messages = saved.messages;
  for (const { role, content } of messages) if (content) show(role, content);
  if (saved.kept) answering(saved.kept);
}

function writing(own, node, on) {
  node.classList.toggle("writing", on);
  node.ariaBusy = on ? "true" : null;
  if (on) status.textContent = "Writing an answer";
  else if (run !== own) return;
  run = on ? own : null;
  send.hidden = on;
  stop.hidden = !on;
  if (!on && document.activeElement === document.body) prompt.focus(); // Stop had the focus, and is gone
}

const SOURCES = { estimated: ", estimated", assumed: ", charged as reserved" };

const dollars = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumSignificantDigits: 2 });

function finished(node, answer, { finish_reason: reason, usage, cost_usd: cost, source, remaining }) {
  status.textContent = `Answer: ${answer.content}`;
  const parts = [];
  if (usage) {
    const [total, input, output] = [usage.total_tokens, usage.input_tokens, usage.output_tokens].map(number);
    parts.push(`${total} tokens${SOURCES[source] ?? ""} (${input} in, ${output} out)`);
  }
  if (cost) parts.push(dollars.format(cost));
  if (reason === "length") parts.push("cut at the length limit");
  if (reason === "content_filter") parts.push("cut by the provider's filter");
  if (parts.length) note(node, "cost", parts.join(" · "));
  if (remaining?.tokens_per_day === undefined || limit === null) readUsage();
  else left(remaining.tokens_per_day, limit - remaining.tokens_per_day, limit);
}

// The server settles a moment after we left: ask until nothing is held, then show the difference.
async function stopped(node, answer) {
  const before = charged;
  status.textContent = "Stopped";
  const line = note(node, "cost", "Stopped");
  if (!answer.content) node.classList.add("empty");
  for (let tries = 0; tries < 10; tries += 1) {
    await new Promise((wake) => setTimeout(wake, 200));
    const day = await readUsage();
    if (!day || before === null || day.used < before) return;
    const tokens = day.used - before;
    if (tokens) line.textContent = `Stopped · about ${number(tokens)} tokens charged (estimated)`;
    else if (!day.held) line.textContent = "Stopped · nothing charged";
    if (!day.held) return;
  }
}

const ADVICE = {
  request_too_large: "You can change it below.",
  bad_request: "You can change it below.",
  body_too_large: "You can change it below.",
  unauthorized: "This server asks for a key, which this page does not have: use a client that sends one.",
  upstream_auth: "If this is your server: check its API key, then start it again.",
  upstream_unreachable: "If this is your server: its log says why.",
};
const EDIT = new Set(["request_too_large", "bad_request", "body_too_large"]);
const FINAL = new Set(["budget_exceeded", "unauthorized", "forbidden", "upstream_auth"]); // asking again changes nothing

// Say what happened and what the reader can do next: retry, now or later, or change the message.
// `kept` is what is known of an answer that may go on without us.
function failed(node, answer, failure, kept = null) {
  const { message, code, retryAfter } = failure;
  const later = retryAfter > 600 ? new Date(Date.now() + retryAfter * 1000) : null;
  const when = later?.toLocaleString([], { weekday: "long", hour: "2-digit", minute: "2-digit" });
  const said = /[.!?]$/.test(message) ? message : `${message}.`;
  const text = [said, ADVICE[code], when && `You can ask again from ${when}.`].filter(Boolean).join(" ");
  if (!answer.content) node.classList.add("empty");
  note(node, "problem", text);
  status.textContent = text;
  readUsage();
  if (EDIT.has(code)) {
    messages.pop();
    const { content } = messages.pop();
    prompt.value = prompt.value ? `${content}\n${prompt.value}` : content;
    node.previousElementSibling?.remove();
  } else if (!later && (retryAfter || !FINAL.has(code))) {
    retryButton(node, answer, retryAfter ?? 0, kept);
  }
}

function retryButton(node, answer, seconds, kept) {
  const button = element("button", "quiet retry", "Retry");
  button.type = "button";
  const ready = Date.now() + seconds * 1000;
  const count = () => {
    const rest = Math.ceil((ready - Date.now()) / 1000);
    button.disabled = rest > 0;
    button.textContent = rest > 0 ? `Retry in ${rest} s` : "Retry";
    if (rest > 0 && button.isConnected) setTimeout(count, 250);
  };
  button.addEventListener("click", () => {
    if (run) return;
    messages.splice(messages.indexOf(answer), 1);
    node.remove();
    prompt.focus();
    if (kept) answering(kept);
    else ask();
  });
  node.append(button);
  count();
  follow();
}

// GET /api/usage: what is left today. Returns the daily token limit as it stands, or null where there is none.
async function readUsage() {
  try {
    const response = await fetch("api/usage");
    const { limits } = await response.json();
    const day = limits.find(({ name }) => name === "tokens_per_day");
    if (!day) return null;
    left(day.remaining, day.used, day.limit);
    return day;
  } catch {
    return null; // the chat works without it
  }
}

function left(remaining, used, of) {
  [charged, limit] = [used, of];
  byId("left").hidden = false;
  byId("left").classList.toggle("low", remaining < of / 10);
  byId("meter").max = of;
  byId("meter").value = remaining;
  byId("left-text").textContent = `${number(remaining)} of ${number(of)} tokens left today`;
}

function say(content) {
  for (const button of log.querySelectorAll(".retry")) button.remove();
  messages.push({ role: "user", content });
  show("user", content);
  ask();
}

// Only scrolling up ends the following: what grows moves the end away too, and is followed a moment later.
scroller.addEventListener("scroll", () => {
  const near = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
  atEnd = near || (atEnd && scroller.scrollTop >= scrolledTo);
  scrolledTo = scroller.scrollTop;
});
new ResizeObserver(follow).observe(scroller);

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (run || !prompt.value.trim()) return;
  const content = prompt.value;
  prompt.value = "";
  prompt.focus();
  say(content);
});
prompt.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // Safari's last Enter of a composition
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  composer.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) halt();
});
stop.addEventListener("click", (event) => {
  if (event.detail < 2) halt(); // the second click of a double click on Send is not a wish to stop
});
welcome.addEventListener("click", ({ target }) => {
  if (target instanceof HTMLButtonElement && !run) say(target.textContent);
});
byId("new").addEventListener("click", () => {
  halt();
  messages = [];
  save();
  log.replaceChildren();
  welcome.hidden = false;
  prompt.focus();
});

addEventListener("pagehide", save);
document.addEventListener("visibilitychange", save); // a phone may end a hidden page without a word
restore();
readUsage();
fetch("api/info")
  .then((response) => response.json())
  .then(({ demo, model, resumable: keeps }) => {
    resumable = keeps;
    if (!keeps) sessionStorage.removeItem(SAVED);
    byId("demo").hidden = !demo;
    byId("model").hidden = !model;
    byId("model").textContent = model;
  })
  .catch(() => {}); // a label less; the chat works without it
