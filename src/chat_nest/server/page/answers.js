// Answers while they are written: start, follow, stop, fail, and resume after a reload.

import { pass } from "./challenge.js";
import { byId } from "./dom.js";
import { explain } from "./failures.js";
import { dayOfTokens, readUsage } from "./money.js";
import { Failure, Run, Stopped } from "./run.js";
import * as store from "./store.js";
import { keptForTab } from "./tab-storage.js";
import { word } from "./words.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./turn.js").Turn} Turn */
/** @typedef {import("./store.js").Kept} Kept */
/** @typedef {import("./store.js").Message} Message */
/** @typedef {{conversation: Conversation, turn: Turn, run: Run, isDeleted?: boolean}} Writing */
/**
 * What the page does when an answer changes. `refused`: question and answer are removed, `text` returns to the box;
 * `spent`: the profile of this conversation answers nothing for so many seconds.
 * @typedef {{changed: (conversation: Conversation) => void,
 *   refused: (conversation: Conversation, turn: Turn, text: string, problem: string) => void,
 *   spent: (conversation: Conversation, problem: string, seconds: number) => void}} View
 */

const SAVE_MS = 1_000;
/** The characters of a complete answer that a screen reader is given to read: some minutes. The whole is in the log. */
const READ_OUT = 3_000;
/** The answers that this tab writes, by conversation. @type {Map<string, Writing>} */
const writing = new Map();
/** The request of a failed answer, to find it again. @type {WeakMap<object, Kept>} */
const unfinished = new WeakMap();
/** What is shown of running answers when the page is left: the browser may end it before a last write is on disk. */
const left = keptForTab("chat-nest-left");
/** @type {View} */
let view;

function keepWhatIsShown() {
  const running = [...writing.values()];
  left.set(running.length ? JSON.stringify(Object.fromEntries(running.map(({ turn: { message } }) => [message.id, message.content]))) : "");
  for (const { conversation, turn } of running) store.write(conversation.talk, [turn.message]);
}
addEventListener("pagehide", keepWhatIsShown);
document.addEventListener("visibilitychange", () => document.hidden && keepWhatIsShown()); // a phone may end a hidden page

/** @param {string} id a message @returns {string} what the page that was left before this one showed of it: told once */
function shownBefore(id) {
  const { [id]: text = "", ...rest } = JSON.parse(left.get() || "{}");
  left.set(JSON.stringify(rest));
  return text;
}

/** @param {View} given */
export const start = (given) => void (view = given);

/** @param {Conversation} conversation @returns {Writing | undefined} */
export const writingIn = (conversation) => writing.get(conversation.talk.id);

const say = (text) => void (byId("status").textContent = text);

/**
 * Write an answer into this turn. `body` makes the request, if `kept` has none.
 * @param {Conversation} conversation @param {Turn} turn @param {Kept} kept @param {() => Promise<string>} [body]
 */
export function write(conversation, turn, kept, body) {
  const { message } = turn;
  return store.alone(message.id, () => follow(conversation, turn, kept, body), () => {});
}

/**
 * Resume an unfinished answer. If another tab is writing it, wait until that tab is gone.
 * @param {Conversation} conversation @param {Turn} turn
 */
export function resume(conversation, turn) {
  const goOn = async () => {
    const snapshot = await store.read(conversation.talk.id);
    const fresh = snapshot?.messages.find(({ id }) => id === turn.message.id);
    if (!fresh?.run || !turn.node.isConnected) return undefined;
    Object.assign(turn.message, fresh);
    if (fresh.run.resumable) return follow(conversation, turn, fresh.run);
    const shown = shownBefore(fresh.id);
    if (shown.length > fresh.content.length) {
      turn.write(shown);
      turn.draw();
    }
    delete turn.message.run;
    turn.message.problem = word("interrupted");
    turn.setWriting(false);
    turn.offerRetry(0);
    return store.write(conversation.talk, [turn.message]);
  };
  return store.alone(turn.message.id, goOn, () => turn.note("reconnecting", word("elsewhere")));
}

/** @param {Conversation} conversation @param {Turn} turn @param {Kept} kept @param {() => Promise<string>} [body] */
async function follow(conversation, turn, kept, body) {
  const { message } = turn;
  const { talk } = conversation;
  let frame = 0;
  let drawing = 0;
  let saving = 0;
  /** @type {Writing} */
  let mine;
  const keep = async (changed = [message]) => void (mine.isDeleted || (await store.write(talk, changed)));
  const draw = () => {
    drawing = 0;
    turn.write(message.content);
    saving ||= setTimeout(() => {
      saving = 0;
      keep();
    }, SAVE_MS);
  };
  // Once a frame, but after it: the frame's own task has the layout, and both together take too long.
  const afterFrame = () => {
    frame = 0;
    drawing = setTimeout(draw);
  };
  const run = new Run(kept, {
    began: () => keep(),
    text: (content) => {
      message.content = kept.before + content;
      if (!frame && !drawing) frame = requestAnimationFrame(afterFrame);
    },
    lost: () => {
      turn.setLost();
      say(word("status.reconnecting"));
    },
    queued: ({ position, estimate_seconds: seconds }) => {
      const text = seconds ? word("queued.estimate", { position, seconds }) : word("queued", { position });
      turn.setLost(text);
      say(text);
    },
    challenged: async (challenge, signal) => {
      say(word("challenge.working"));
      try {
        await pass(challenge, signal, { progress: (share) => turn.setChallenge(share), widget: (frame) => turn.setWidget(frame) });
      } finally {
        turn.setChallenge(null);
      }
      say(word("status.writing"));
    },
    back: () => {
      if (turn.setBack()) say(word("status.writing"));
    },
  });
  mine = { conversation, turn, run };
  writing.set(talk.id, mine);
  Object.assign(message, { run: kept.resumable ? kept : { ...kept }, content: kept.before, problem: undefined, stopped: undefined, reason: undefined, costs: undefined });
  turn.setWriting(true);
  say(word("status.writing"));
  view.changed(conversation);
  let failure = null;
  try {
    if (body) kept.body = await body().catch(() => Promise.reject(new Failure("", { code: "image_unreadable" })));
    await keep([...conversation.messages.values()].filter(({ id }) => id === message.id || id === message.parent));
    view.changed(conversation); // a new one is now in the list
    ended(turn, await run.follow(), run.content, kept);
  } catch (error) {
    failure = error;
  }
  cancelAnimationFrame(frame);
  clearTimeout(drawing);
  clearTimeout(saving);
  if (writing.get(talk.id) === mine) writing.delete(talk.id);
  delete message.run;
  turn.write(message.content);
  if (failure instanceof Stopped) message.stopped = true;
  turn.setWriting(false);
  if (failure instanceof Failure) failed(conversation, turn, kept, failure);
  view.changed(conversation);
  if (conversation.messages.has(message.id)) await keep();
  if (failure instanceof Stopped) await told(turn);
  else await readUsage();
}

/** @param {Turn} turn @param {any} done @param {string} content @param {Kept} kept */
function ended({ message }, done, content, kept) {
  const before = kept.before ? (message.signed ?? []) : [];
  message.signed = done.signature ? [...before, { asked: kept.asked ?? "", content, signature: done.signature }] : undefined;
  const dropped = (done.dropped_messages ?? 0) + (message.left_out ?? 0);
  message.costs = done.usage || dropped || done.dropped_images ? { ...done, dropped_messages: dropped } : undefined;
  message.reason = done.finish_reason;
  const text = message.content.length > READ_OUT ? `${message.content.slice(0, READ_OUT)}…` : message.content;
  setTimeout(() => say(word("status.answer", { text }))); // a long text has a layout of its own
}

/** The server settles a moment after the page left: read usage until nothing is held, then show the difference. */
async function told(turn) {
  const before = dayOfTokens()?.used; // the cost of this answer was only held until now
  say(word("stopped"));
  const line = turn.notes.querySelector(".cost");
  for (let tries = 0; tries < 10; tries += 1) {
    await new Promise((wake) => setTimeout(wake, 200));
    if (!(await readUsage())) return;
    const day = dayOfTokens();
    if (!day || !line || before === undefined || day.used < before) return;
    const count = day.used - before;
    if (count) line.textContent = word("stopped.charged", { count });
    else if (!day.held) line.textContent = word("stopped.free");
    if (!day.held) return;
  }
}

/** @param {Conversation} conversation @param {Turn} turn @param {Kept} kept @param {Failure} failure */
function failed(conversation, turn, kept, failure) {
  const { message } = turn;
  const { text, then, seconds } = explain(failure);
  say(text);
  const goesOn = kept.resumable && (failure.fields.code === "lost" || failure.fields.code === "unreachable");
  if (then === "edit" && message.content === kept.before) {
    view.refused(conversation, turn, kept.before, text);
    return;
  }
  message.problem = text;
  if (goesOn) unfinished.set(message, kept);
  turn.settle();
  if (then === "nothing" && seconds) view.spent(conversation, text, seconds);
  if (then === "retry") turn.offerRetry(seconds);
  if (then === "key") turn.button(word("key.enter"), () => turn.acts.enterKey(turn), "retry");
}

/** @param {Turn} turn @returns {Kept | undefined} the request of an answer whose connection was lost */
export const restOf = ({ message }) => unfinished.get(message);

/**
 * The conversation was deleted: end its answer, and store nothing more of it.
 * @param {string} id @returns {Message | undefined} the answer as it was shown, more of which may be there than was stored
 */
export function discard(id) {
  const found = writing.get(id);
  if (!found) return undefined;
  const shown = { ...found.turn.message };
  found.isDeleted = true;
  writing.delete(id);
  found.run.stop();
  store.remove(id); // what was written while it was deleted
  return shown;
}

/** Stop the answer of this conversation. @param {Conversation} conversation */
export async function stop(conversation) {
  const found = writingIn(conversation);
  if (found && !(await found.run.stop())) found.turn.note("problem", word("not_stopped"));
}
