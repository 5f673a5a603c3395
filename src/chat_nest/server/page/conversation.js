// One conversation as a tree of messages: a changed question or another answer is a sibling, and one path is shown.

import { contentOf, sendable } from "./images.js";
import { newId } from "./store.js";
import { word } from "./words.js";

/** @typedef {import("./store.js").Talk} Talk */
/** @typedef {import("./store.js").Message} Message */

/** The most of one request. The server trims to the model's budget; this only limits the body. */
const SENT = { messages: 200, characters: 60_000 };
const TITLE = 60;

export class Conversation {
  /** @param {Talk} talk @param {Message[]} messages */
  constructor(talk, messages) {
    this.replace(talk, messages);
  }

  /** Take what another tab stored. It stays the same conversation: an answer may wait to be resumed in it. */
  replace(talk, messages) {
    /** @type {Talk} */
    this.talk = talk;
    /** @type {Map<string, Message>} */
    this.messages = new Map(messages.map((message) => [message.id, message]));
  }

  static begin({ profile = "", system = "" } = {}) {
    const now = Date.now();
    return new Conversation({ id: newId(), title: "", created: now, updated: now, head: "", profile, system }, []);
  }

  /** @returns {Message[]} what is shown, the oldest first */
  path() {
    const found = [];
    for (let at = this.messages.get(this.talk.head); at; at = this.messages.get(at.parent)) found.unshift(at);
    return found;
  }

  /**
   * @param {string} parent @param {"user" | "assistant"} role @param {string} content
   * @param {import("./images.js").Picture[]} [images] @returns {Message}
   */
  add(parent, role, content, images = []) {
    const created = Math.max(Date.now(), this.talk.updated + 1); // the device's clock may have been set back
    const message = { id: newId(), talk: this.talk.id, parent, created, role, content, ...(images.length && { images }) };
    this.messages.set(message.id, message);
    this.talk.head = message.id;
    this.talk.updated = message.created;
    if (!this.talk.title && role === "user") this.talk.title = titleOf(content) || word("image");
    return message;
  }

  /** @param {Message} message @returns {Message[]} the versions of it, itself among them */
  versions(message) {
    const found = [...this.messages.values()].filter(({ parent, role }) => parent === message.parent && role === message.role);
    return found.sort((one, other) => one.created - other.created);
  }

  /** Show this message, and the newest of what follows it. @param {Message} message */
  show(message) {
    let last = message;
    for (;;) {
      const next = [...this.messages.values()].filter(({ parent }) => parent === last.id);
      if (!next.length) break;
      last = next.reduce((newest, each) => (each.created > newest.created ? each : newest));
    }
    this.talk.head = last.id;
  }

  /** Delete a message without replies, and show the one before it. @param {Message} message */
  drop(message) {
    this.messages.delete(message.id);
    if (this.talk.head === message.id) this.talk.head = message.parent;
  }

  /**
   * The messages to send for an answer to `last`, and how many of the oldest were left out for their size. If answers
   * are `signed`, each is sent as it came, and one that was not written to its end is left out.
   * @param {Message} last @param {{signed_turns?: boolean}} [profile]
   */
  request(last, { signed_turns: signed = false } = {}) {
    const path = [];
    for (let at = last; at; at = this.messages.get(at.parent)) path.unshift(at);
    const said = path.filter(({ content, images }) => content || images).flatMap((message) => (signed ? asSigned(message) : [plain(message)]));
    let room = SENT.characters;
    const recent = said.slice(-SENT.messages);
    const tooFar = recent.findLastIndex(({ content }) => (room -= content.length) < 0);
    const messages = recent.slice(Math.min(tooFar + 1, recent.length - 1));
    while (signed && messages.length > 1 && messages[0].role === "assistant") messages.shift(); // its question is gone
    return { messages, left_out: said.length - messages.length };
  }
}

/**
 * The messages with their images, as the server takes them.
 * @param {{role: string, content: string, images?: import("./images.js").Picture[]}[]} messages
 * @param {import("./images.js").Limits | null} limits
 */
export function withImages(messages, limits) {
  const sent = sendable(messages, limits);
  return Promise.all(messages.map(async ({ images, ...rest }) => (images ? { ...rest, content: await contentOf(rest.content, images, sent) } : rest)));
}

/** @param {Message} message */
const plain = ({ role, content, images }) => ({ role, content, ...(images && { images }) });

/** An answer in the pieces in which it was signed: the question that continued it comes before a later piece. @param {Message} message */
function asSigned(message) {
  if (message.role === "user") return [plain(message)];
  return (message.signed ?? []).flatMap(({ asked, content, signature }) => [
    ...(asked ? [{ role: "user", content: asked }] : []),
    { role: "assistant", content, signature },
  ]);
}

/** @param {string} content */
function titleOf(content) {
  const line = content.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length <= TITLE ? line : `${line.slice(0, TITLE).replace(/\s+\S*$/, "")}…`;
}
