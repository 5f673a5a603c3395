// Conversations as files.

import { element } from "./dom.js";
import { word } from "./words.js";

/** @param {import("./conversation.js").Conversation} conversation @returns {string} what is shown, as Markdown */
export function asMarkdown(conversation) {
  const turns = conversation.path().map(({ role, content }) => `## ${word(role === "user" ? "you" : "answer")}\n\n${content.trim()}\n`);
  return [`# ${conversation.talk.title || word("side.untitled")}\n`, ...turns].join("\n");
}

/** @param {import("./store.js").Snapshot[]} snapshots @returns {string} everything, versions too */
export const asJson = (snapshots) => `${JSON.stringify({ format: "chat-nest-conversations-1", conversations: snapshots }, null, 2)}\n`;

/** Save a file through the browser. @param {string} name @param {string} text @param {string} type */
export function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** @param {string} title @param {string} end */
export const fileName = (title, end) => `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "chat"}.${end}`;
