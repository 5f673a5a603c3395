// Conversations as files.

import { element } from "./dom.js";
import { dataUrl } from "./images.js";
import { word } from "./words.js";

/** @param {import("./conversation.js").Conversation} conversation @returns {string} what is shown, as Markdown; of images their names */
export function asMarkdown(conversation) {
  const turns = conversation.path().map(({ role, content, images = [] }) => {
    const named = images.map(({ name }) => `*${word("image.named", { name: name.replace(/[*_`<[\]\\]/g, "\\$&") })}*`);
    return `${[`## ${word(role === "user" ? "you" : "answer")}`, ...named, content.trim()].filter(Boolean).join("\n\n")}\n`;
  });
  return [`# ${conversation.talk.title || word("side.untitled")}\n`, ...turns].join("\n");
}

/** @param {import("./store.js").Snapshot[]} snapshots @returns {Promise<string>} everything, versions and images too */
export async function asJson(snapshots) {
  const written = async ({ blob, ...rest }) => ({ ...rest, url: await dataUrl(blob).catch(() => null) });
  const whole = async ({ images, ...rest }) => (images ? { ...rest, images: await Promise.all(images.map(written)) } : rest);
  const conversations = await Promise.all(
    snapshots.map(async ({ talk, messages }) => ({ talk, messages: await Promise.all(messages.map(whole)) })),
  );
  return `${JSON.stringify({ format: "chat-nest-conversations-1", conversations }, null, 2)}\n`;
}

/** Save a file through the browser. @param {string} name @param {string} text @param {string} type */
export function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** @param {string} title @param {string} end */
export const fileName = (title, end) => `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "chat"}.${end}`;
