// The page of a Chat Nest server: the open conversation, and what its visitor does with it.

import * as answers from "./answers.js";
import * as attachments from "./attachments.js";
import { visit } from "./challenge.js";
import { Conversation, withImages } from "./conversation.js";
import { byId, element } from "./dom.js";
import * as keyboard from "./keyboard.js";
import * as money from "./money.js";
import { toEnd } from "./scrolling.js";
import * as settings from "./settings.js";
import * as side from "./side.js";
import * as store from "./store.js";
import { keptForTab } from "./tab-storage.js";
import { Turn, copyFrom, loadMarkdown, prepare } from "./turn.js";
import { config, known, load, word } from "./words.js";

/** @typedef {import("./store.js").Message} Message */

const DOUBLE_CLICK_MS = 500;
const [log, prompt, composer] = ["log", "prompt", "composer"].map(byId);

let conversation = Conversation.begin();
/** The turns that are shown, by message. @type {Map<string, Turn>} */
let turns = new Map();
/** The turn whose message is being changed. @type {Turn | null} */
let editing = null;
/** The turn that waits for a key. @type {Turn | null} */
let waiting = null;
/** What is in the box outlives a reload. */
const unsent = keptForTab("chat-nest-unsent");
let opening = 0;
/** The conversation in which an answer is about to begin. @type {Conversation | null} */
let beginning = null;
/** Whether the answer is stopped for what is in the box. */
let isNext = false;
/** When Send was clicked. */
let sent = -Infinity;
/** Why a profile answers nothing until then: its budget is spent. @type {Map<string, {problem: string, until: number}>} */
const spent = new Map();
let draft = { text: "", images: /** @type {import("./images.js").Picture[]} */ ([]) };

const profile = () => config.profiles.find(({ name }) => name === byId("profile").value) ?? config.profiles[0];

/** Show the conversation. Unchanged elements stay as they are. */
function render() {
  const path = conversation.path();
  const shown = new Map(path.map((message) => [message.id, turnFor(message)]));
  const nodes = [...shown.values()].map(({ node }) => node);
  const isSame = nodes.length === log.children.length && nodes.every((node, index) => node === log.children[index]);
  if (!isSame) log.replaceChildren(...nodes);
  turns = shown;
  byId("welcome").hidden = path.length > 0;
  document.body.classList.toggle("chatting", path.length > 0);
  document.title = [conversation.talk.title, config.title].filter(Boolean).join(" · ");
  setComposer();
}

/** @param {Message} message */
function turnFor(message) {
  const found = turns.get(message.id);
  const versions = conversation.versions(message);
  if (!found) return new Turn(message, versions, acts);
  if (found.versions.length !== versions.length) found.setVersions(versions);
  return found;
}

function setComposer() {
  const writing = answers.writingIn(conversation);
  const hadFocus = document.activeElement === byId("stop") || document.activeElement === byId("send");
  byId("send").hidden = Boolean(writing);
  byId("stop").hidden = !writing;
  byId("editing").hidden = !editing;
  if (!writing) {
    byId("busy").hidden = true;
    if (isNext) setTimeout(() => composer.requestSubmit()); // the answer's end is still being shown
    isNext = false;
  }
  attachments.draw();
  if (document.activeElement === document.body || (hadFocus && !writing)) prompt.focus();
}

const setActions = () => turns.forEach((turn) => turn.setActions());

answers.start({
  changed: (changed) => {
    if (changed === conversation) render();
    side.draw();
  },
  refused: takeBack,
  spent: ({ talk }, problem, seconds) => {
    spent.set(talk.profile, { problem, until: Date.now() + seconds * 1000 });
    setActions();
    if (seconds < 2_000_000) setTimeout(setActions, seconds * 1000 + 1_000);
  },
});

/** The question was refused: it returns to the box, unless other messages depend on it. */
async function takeBack(from, turn, before, problem) {
  const { message } = turn;
  const question = from.messages.get(message.parent);
  const erased = before ? [] : [message];
  const others = [...from.messages.values()].filter(({ parent, id }) => parent === question.id && id !== message.id);
  for (const each of erased) from.drop(each);
  if (erased.length && !others.length && turn.isNew) {
    from.drop(question);
    erased.push(question);
    prompt.value = [question.content, prompt.value].filter(Boolean).join("\n");
    attachments.swap([...(question.images ?? []), ...attachments.swap()]);
  } else if (others.length) from.show(others.at(-1));
  if (from.messages.size) await store.write(from.talk, [], erased);
  else {
    from.talk.title = ""; // of a message that may now be another one
    await store.remove(from.talk.id);
  }
  side.draw();
  if (from !== conversation) return;
  render();
  log.append(element("div", { class: "message refused" }, element("p", { class: "problem" }, problem)));
  toEnd();
}

/**
 * Request an answer to `question`, or the rest of one, in a task of its own: what was clicked is shown first.
 * @param {Message} question @param {{turn?: Turn, goOn?: boolean, isNew?: boolean}} [how]
 */
function answer(question, { turn, goOn = false, isNew = false } = {}) {
  const message = turn ? turn.message : conversation.add(question.id, "assistant", "");
  const { messages, left_out } = conversation.request(goOn ? message : question, profile());
  const asked = goOn ? word("continue.prompt") : "";
  if (goOn) messages.push({ role: "user", content: asked });
  const { name, system_prompt: hasSystem, resumable, images } = profile();
  const { system } = conversation.talk;
  const rest = { conversation: conversation.talk.id, ...(config.profiles.length > 1 && { profile: name }), ...(hasSystem && system && { systemPrompt: system }) };
  const kept = { id: "", key: resumable ? store.newId() : "", body: "", before: goOn ? message.content : "", asked, resumable };
  message.left_out = left_out;
  conversation.talk.profile = name;
  const into = conversation;
  beginning = into;
  setTimeout(() => {
    beginning = null;
    const isOpen = into === conversation;
    if (isOpen) render();
    const shown = turns.get(message.id) ?? turn ?? new Turn(message, [message], acts);
    shown.isNew = isNew;
    if (isOpen) {
      history.replaceState(null, "", `#${conversation.talk.id}`);
      toEnd();
    }
    answers.write(into, shown, kept, async () => JSON.stringify({ messages: await withImages(messages, images), ...rest }));
  });
}

/** @param {string} content @param {import("./images.js").Picture[]} [images] @param {string} [parent] */
function say(content, images = [], parent = conversation.talk.head) {
  for (const button of log.querySelectorAll(".retry, .refused")) button.remove();
  loadMarkdown();
  const question = conversation.add(parent, "user", content, images);
  render();
  toEnd();
  answer(question, { isNew: true });
}

const isBusy = () => beginning === conversation || Boolean(answers.writingIn(conversation));

/** @type {import("./turn.js").Acts & Record<string, any>} */
const acts = {
  edit(turn) {
    if (isBusy()) return;
    const images = attachments.swap(turn.message.images);
    if (!editing) draft = { text: prompt.value, images };
    editing = turn;
    prompt.value = turn.message.content;
    setComposer();
    prompt.focus();
  },
  again(turn) {
    if (!isBusy()) answer(conversation.messages.get(turn.message.parent));
  },
  goOn(turn) {
    if (!isBusy()) answer(conversation.messages.get(turn.message.parent), { turn, goOn: true });
  },
  retry(turn) {
    if (isBusy()) return;
    const rest = answers.restOf(turn);
    prompt.focus();
    if (rest) answers.write(conversation, turn, rest);
    else answer(conversation.messages.get(turn.message.parent), { turn });
  },
  version(message) {
    if (isBusy()) return;
    conversation.show(message);
    store.write(conversation.talk);
    render();
    turns.get(message.id)?.node.querySelector(".branch button:enabled")?.focus();
  },
  spent() {
    const { problem, until } = spent.get(profile().name) ?? { problem: "", until: 0 };
    return until > Date.now() ? problem : "";
  },
  enterKey(turn) {
    waiting = turn;
    settings.open();
  },
};

function stopEditing() {
  editing = null;
  prompt.value = draft.text;
  attachments.swap(draft.images);
  draft = { text: "", images: [] };
  setComposer();
}

/** Open a stored conversation; without an id, or if it is gone, a new one. @param {string} id */
async function open(id) {
  const mine = (opening += 1);
  const writing = id && answers.writingIn(/** @type {any} */ ({ talk: { id } }));
  const snapshot = id && !writing ? await store.read(id) : null;
  if (mine !== opening) return; // another one was chosen meanwhile
  if (editing) stopEditing();
  isNext = false;
  byId("busy").hidden = true;
  const { profile: before, system } = conversation.talk;
  turns = new Map();
  if (writing) {
    conversation = writing.conversation;
    turns.set(writing.turn.message.id, writing.turn);
  } else conversation = snapshot ? new Conversation(snapshot.talk, snapshot.messages) : Conversation.begin({ profile: before, system });
  if (config.profiles.some(({ name }) => name === conversation.talk.profile)) byId("profile").value = conversation.talk.profile;
  history.replaceState(null, "", snapshot || writing ? `#${id}` : location.pathname + location.search);
  side.closeDrawer();
  log.replaceChildren();
  render();
  toEnd();
  side.draw();
  prompt.focus();
  goOn();
}

/** Resume an unfinished answer. */
function goOn() {
  const last = turns.get(conversation.talk.head);
  if (last?.message.run && !isBusy()) answers.resume(conversation, last);
  else if (last?.message.problem && !last.notes.querySelector(".retry")) last.offerRetry(0);
}

/** Another tab has changed this conversation. */
async function refresh() {
  if (isBusy()) return;
  const shown = conversation;
  const snapshot = await store.read(shown.talk.id);
  if (!snapshot || conversation !== shown || isBusy()) return;
  const before = turns;
  conversation.replace(snapshot.talk, snapshot.messages);
  turns = new Map();
  for (const message of conversation.path()) {
    const turn = before.get(message.id);
    if (!turn) continue;
    if (message.run && message.content.startsWith(turn.message.content)) {
      turn.write(message.content);
      turns.set(message.id, turn);
    } else if (JSON.stringify(turn.message) === JSON.stringify(message)) turns.set(message.id, turn);
  }
  for (const [id, turn] of turns) conversation.messages.set(id, turn.message);
  render();
}

/** Conversations were deleted, here or in another tab. @param {string[]} ids @returns the answers that were being written */
function removed(ids) {
  const shown = ids.map(answers.discard);
  if (ids.includes(conversation.talk.id)) open("");
  return shown;
}

store.listen(({ kind, talk }) => {
  side.draw();
  if (kind === "removed") removed([talk]);
  else if (talk === conversation.talk.id) refresh();
});
store.onFull(() => side.draw());

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const content = prompt.value;
  if (attachments.isReading()) {
    const asked = conversation;
    attachments.read().then(() => asked === conversation && composer.requestSubmit());
    return;
  }
  if ((!content.trim() && attachments.isEmpty()) || !attachments.areTaken()) return;
  if (isBusy()) {
    byId("busy").hidden = false;
    return;
  }
  const parent = editing?.message.parent;
  prompt.focus(); // before anything changes: focus needs a layout
  const images = attachments.swap();
  if (editing) stopEditing();
  else prompt.value = "";
  say(content.trim() && content, images, parent);
});
keyboard.start({ send: () => composer.requestSubmit(), open: () => open(""), escape: () => (editing ? stopEditing() : answers.stop(conversation)) });
byId("stop").addEventListener("click", (event) => {
  if (event.timeStamp - sent > DOUBLE_CLICK_MS) answers.stop(conversation); // not the second click of a double click on Send
});
byId("stop-and-send").addEventListener("click", () => {
  isNext = true;
  prompt.focus();
  answers.stop(conversation);
});
byId("send").addEventListener("click", ({ timeStamp, detail }) => detail && (sent = timeStamp)); // none by the keyboard
byId("cancel-edit").addEventListener("click", () => {
  stopEditing();
  prompt.focus();
});
byId("suggestions").addEventListener("click", ({ target }) => {
  if (target instanceof HTMLButtonElement) say(target.textContent);
});
log.addEventListener("click", ({ target }) => {
  const button = target.closest?.(".copy-code");
  if (button) copyFrom(button, button.closest(".code").querySelector("pre").textContent);
});
byId("new").addEventListener("click", () => open(""));
byId("profile").addEventListener("change", () => {
  conversation.talk.profile = byId("profile").value;
  attachments.draw();
  setActions();
  money.readUsage();
});
addEventListener("pagehide", () => unsent.set(editing ? draft.text : prompt.value));
addEventListener("hashchange", () => location.hash.slice(1) !== conversation.talk.id && open(location.hash.slice(1)));
addEventListener("beforeprint", () => turns.forEach((turn) => turn.draw(true)));

function drawWords() {
  const suggestions = config.suggestions ?? [1, 2, 3].map((index) => word(`suggestion.${index}`));
  const button = (text) => element("button", { type: "button", class: "quiet" }, text);
  byId("suggestions").replaceChildren(...suggestions.map((text) => element("li", {}, button(text))));
  if (config.greeting) byId("greeting").textContent = config.greeting;
  const isOneModel = new Set(config.profiles.map(({ model }) => model)).size < config.profiles.length;
  const nameOf = ({ name }) => (known(`profile.${name}`) ? word(`profile.${name}`) : name);
  const options = config.profiles.map((each) => element("option", { value: each.name }, isOneModel ? nameOf(each) : each.model));
  const chosen = byId("profile").value;
  byId("profile").replaceChildren(...options);
  if (chosen) byId("profile").value = chosen;
}

settings.start({
  system: () => conversation.talk.system,
  setSystem: (text) => void (conversation.talk.system = text),
  hasSystem: () => profile().system_prompt,
  spoken: async () => {
    drawWords();
    if (!isBusy()) turns = new Map();
    render();
    await side.draw();
  },
  keyed: () => {
    money.readUsage();
    if (waiting?.node.isConnected) acts.retry(waiting);
    waiting = null;
  },
});

prompt.value ||= unsent.get();
await load();
drawWords();
byId("demo").hidden = !config.demo;
byId("notice").hidden = !config.notice;
byId("notice").textContent = config.notice;
byId("profile-label").hidden = config.profiles.length < 2;
byId("model").textContent = config.profiles[0].model;
byId("model").hidden = config.profiles.length > 1 && new Set(config.profiles.map(({ model }) => model)).size > 1;
attachments.start(() => profile().images);
if (config.profiles.length > 1) money.start(() => profile().name);
await side.start({ open, current: () => conversation.talk.id, removed });
await visit();
await open(location.hash.slice(1));
money.readUsage();
document.documentElement.dataset.ready = "";
prepare();
