// The page of a Chat Nest server: one conversation, held by this page alone and streamed from POST /api/chat.
// Whatever a model writes is shown with textContent or a text node, so HTML, scripts and links in it stay inert.

const STALL_MS = 45_000; // the server pings every 15 s: three missed pings are a lost connection
const HISTORY = { messages: 40, characters: 60_000 }; // the server trims to the model's budget; this only bounds a body

const byId = (id) => document.getElementById(id);
const [scroller, log, welcome, status] = ["scroller", "log", "welcome", "status"].map(byId);
const [composer, prompt, send, stop] = ["composer", "prompt", "send", "stop"].map(byId);
const number = (value) => value.toLocaleString("en");

let messages = []; // what is sent: {role, content}
let run = null; // the AbortController of the answer in progress
let charged = null; // tokens used today, as the server last said
let limit = null; // tokens a day
let atEnd = true; // whether the reader follows the end of the log
let scrolledTo = 0;

const STOPPED = Symbol("stopped");

class Failure extends Error {
  constructor(message, { code = "", retry_after: retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { code, retryAfter });
  }
}

// Server-Sent Events from a response's body, as {name, data}; data is parsed JSON, or null where it is empty.
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
      const fields = { event: "message", data: "" };
      for (const line of frame.split("\n")) {
        const [, field, content] = /^(event|data): ?(.*)$/s.exec(line) ?? [];
        if (field) fields[field] = content;
      }
      yield { name: fields.event, data: fields.data ? JSON.parse(fields.data) : null };
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
async function ask() {
  const { node, text } = show("assistant", "");
  const answer = { role: "assistant", content: "" };
  const own = new AbortController();
  const body = JSON.stringify({ messages: history() });
  let watchdog;
  const alive = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => own.abort(), STALL_MS);
  };
  let frame = 0;
  const paint = () => {
    frame = 0;
    text.data = answer.content;
    follow();
  };
  writing(own, node, true);
  messages.push(answer);
  alive();
  let response = null;
  try {
    const headers = { "content-type": "application/json" };
    response = await fetch("api/chat", { method: "POST", headers, body, signal: own.signal });
    if (!response.ok) throw await refusal(response);
    let done = null;
    for await (const { name, data } of events(response.body)) {
      alive();
      if (name === "error") throw new Failure(data.message, data);
      if (name === "done") done = data ?? {};
      if (name !== "token") continue;
      answer.content += data;
      frame ||= requestAnimationFrame(paint);
    }
    if (!done) throw new Error("an end without its event");
    finished(node, answer, done);
  } catch (error) {
    const cause = own.signal.reason ?? error;
    const lost = response ? "The connection was lost before the answer was complete." : "The server can't be reached.";
    if (cause === STOPPED) stopped(node, answer);
    else failed(node, answer, cause instanceof Failure ? cause : new Failure(lost));
  } finally {
    clearTimeout(watchdog);
    cancelAnimationFrame(frame);
    paint();
    writing(own, node, false);
  }
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
  upstream_auth: "If this is your server: check its API key, then start it again.",
  upstream_unreachable: "If this is your server: its log says why.",
};
const EDIT = new Set(["request_too_large", "bad_request", "body_too_large"]);
const FINAL = new Set(["budget_exceeded", "unauthorized", "forbidden", "upstream_auth"]); // asking again changes nothing

// Say what happened and what the reader can do next: retry, now or later, or change the message.
function failed(node, answer, failure) {
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
    retryButton(node, answer, retryAfter ?? 0);
  }
}

function retryButton(node, answer, seconds) {
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
    ask();
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

function halt() {
  run?.abort(STOPPED);
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
  log.replaceChildren();
  welcome.hidden = false;
  prompt.focus();
});

readUsage();
fetch("api/info")
  .then((response) => response.json())
  .then(({ demo, model }) => {
    byId("demo").hidden = !demo;
    byId("model").hidden = !model;
    byId("model").textContent = model;
  })
  .catch(() => {}); // a label less; the chat works without it
