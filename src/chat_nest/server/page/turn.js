// One message on the page: its text, cost, error and buttons.

import { element, icon, iconButton } from "./dom.js";
import { gallery } from "./images.js";
import { costLine } from "./money.js";
import { number, word } from "./words.js";

/** @typedef {import("./store.js").Message} Message */
/**
 * The actions of a turn. `spent` returns why no answer can be asked for now, or nothing.
 * @typedef {{edit: (turn: Turn) => void, again: (turn: Turn) => void, goOn: (turn: Turn) => void, retry: (turn: Turn) => void,
 *   spent: () => string,
 *   version: (message: Message) => void, enterKey: () => void}} Acts
 */

/** @type {typeof import("./markdown.js").Markdown} */
let Markdown;
/** @type {typeof import("./markdown.js").prepareFormulas} */
let prepareFormulas;
/** @type {Promise<void> | null} */
let loading = null;
const AGAIN_MS = 2_000;

/** Load the Markdown code, however often that takes; until then, text is shown unformatted. */
export const loadMarkdown = () => (loading ??= load());

async function load() {
  for (let tries = 0; !Markdown; tries += 1) {
    if (tries) await new Promise((wake) => setTimeout(wake, AGAIN_MS));
    // A browser may remember that a module failed to load: then only another address loads it.
    await import(`./markdown.js${tries ? `?${tries}` : ""}`).then((module) => void ({ Markdown, prepareFormulas } = module), () => {});
  }
}

const idle = () => new Promise((resume) => (globalThis.requestIdleCallback ?? setTimeout)(resume));

/** Load it before an answer comes, and use what takes several frames at its first use: a part in each idle time. */
export async function prepare() {
  await idle();
  await loadMarkdown();
  const first = new Markdown(document.createElement("div"));
  let text = "";
  for (const part of ["**A** `b`\n\n", "- c\n\n", "| d |\n|---|\n| e |"]) {
    await idle();
    first.update((text += part));
  }
  await idle();
  prepareFormulas();
  await idle();
  number(1_000);
  await idle();
  word("unit.tokens", { count: 1 });
  const acts = /** @type {any} */ ({ spent: () => "" });
  for (const role of /** @type {("user" | "assistant")[]} */ (["user", "assistant"])) {
    await idle();
    const turn = new Turn({ id: "", talk: "", parent: "", created: 0, role, content: "" }, [], acts);
    turn.setWriting(true);
    nearby.unobserve(turn.node);
  }
}

/** A stored or resumed answer comes all at once, and a busy page gets much of one at once: a task makes some of it. */
const SLICE = { characters: 600, ms: 8 };

/** Markdown is made when it comes near the window: a long conversation opens at once. */
const nearby = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) turns.get(target)?.draw();
  },
  { rootMargin: "1500px" },
);
/** @type {WeakMap<Element, Turn>} */
const turns = new WeakMap();
/** @param {Element} node @returns {Turn | undefined} */
export const turnOf = (node) => turns.get(node);

/** @param {string} text @returns {boolean} whether it would fill most of a screen */
const isLong = (text) => text.length > 1_500 || text.split("\n", 21).length > 20;

export class Turn {
  /** @param {Message} message @param {Message[]} versions @param {Acts} acts */
  constructor(message, versions, acts) {
    this.message = message;
    this.acts = acts;
    const isMine = message.role === "user";
    this.words = element("div", { class: "words plain", dir: "auto" });
    this.notes = element("div", { class: "notes" });
    this.actions = element("div", { class: "actions" });
    this.node = element(
      "article",
      { class: `message ${message.role}` },
      element("h2", { class: "unseen" }, word(isMine ? "you" : "answer")),
      ...(message.images ? [gallery(message.images)] : []),
      ...[this.words, this.notes, this.actions],
    );
    turns.set(this.node, this);
    this.words.textContent = message.content;
    this.drawn = null;
    /** @type {Promise<void> | null} */
    this.loading = null; // the text may all be there before the code that draws it
    this.shown = 0; // the characters that are shown as Markdown
    this.growing = 0;
    if (!isMine) {
      nearby.observe(this.node);
      this.node.classList.add("still");
    }
    this.setVersions(versions);
    this.settle();
    if (isMine && isLong(message.content)) this.fold();
  }

  /** A long message is shown in part, with a button for the rest. */
  fold() {
    this.words.classList.add("folded");
    const button = this.button(word("unfold"), () => {
      const isFolded = this.words.classList.toggle("folded");
      button.textContent = word(isFolded ? "unfold" : "fold");
      button.ariaExpanded = String(!isFolded);
    });
    button.ariaExpanded = "false";
  }

  get isMine() {
    return this.message.role === "user";
  }

  /** Show the text as Markdown, if it is an answer. @param {boolean} [atOnce] */
  async draw(atOnce = false) {
    nearby.unobserve(this.node);
    if (this.isMine || this.drawn || !this.message.content) return;
    await (this.loading ??= loadMarkdown());
    if (this.drawn) return;
    this.words.classList.remove("plain");
    this.drawn = new Markdown(this.words);
    this.grow(atOnce);
  }

  /** Show more of the text, and the rest a moment later. @param {boolean} [atOnce] */
  grow(atOnce = document.hidden) {
    const { content } = this.message;
    clearTimeout(this.growing);
    const until = performance.now() + SLICE.ms;
    do {
      let end = atOnce ? content.length : Math.min(content.length, this.shown + SLICE.characters);
      if (/[\uD800-\uDBFF]$/.test(content.slice(end - 1, end))) end += 1;
      this.drawn.update(content.slice(0, end));
      this.shown = end;
    } while (this.shown < content.length && performance.now() < until);
    if (this.shown < content.length) this.growing = setTimeout(() => this.grow());
    else if (!this.isWriting) this.drawn.finish();
  }

  /** Show more of an answer. @param {string} content */
  write(content) {
    this.message.content = content;
    this.shown = Math.min(this.shown, content.length);
    if (this.drawn) this.grow();
    else {
      if (!Markdown) this.words.textContent = content;
      this.draw();
    }
  }

  get isWriting() {
    return this.node.classList.contains("writing");
  }

  /** @param {boolean} on */
  setWriting(on) {
    this.node.classList.toggle("writing", on);
    this.node.ariaBusy = on ? "true" : null;
    if (on) {
      this.notes.replaceChildren();
      this.node.classList.remove("empty", "still");
      this.setActions();
    } else {
      if (this.drawn) this.grow();
      else this.draw();
      this.settle();
    }
  }

  /** Show the end: the cost, and what is missing. */
  settle() {
    const { content, costs, reason, problem, stopped } = this.message;
    this.node.classList.toggle("empty", !content && !this.isWriting);
    this.notes.replaceChildren();
    if (problem) this.note("problem", problem);
    if (stopped) this.note("cost", word("stopped"));
    const dropped = costs?.dropped_messages ?? 0;
    if (dropped) this.note("dropped", word("dropped", { count: dropped }));
    const unseen = costs?.dropped_images ?? 0;
    if (unseen) this.note("dropped", word("dropped.images", { count: unseen }));
    const line = costs ? costLine(costs) : "";
    if (line) this.note("cost", line);
    if (reason === "length" && !problem) this.button(word("continue"), () => this.acts.goOn(this), "more");
    this.setActions();
  }

  /** @param {"cost" | "problem" | "dropped" | "reconnecting" | "challenge"} kind @param {string} text */
  note(kind, text) {
    const line = element("p", { class: kind }, text);
    this.notes.append(line);
    return line;
  }

  button(text, act, name = "") {
    const button = element("button", { type: "button", class: `quiet ${name}`, onclick: act }, text);
    this.notes.append(button);
    return button;
  }

  /** A button for a retry, now or after some seconds. @param {number} seconds */
  offerRetry(seconds) {
    const button = this.button(word("retry"), () => this.acts.retry(this), "retry");
    const ready = Date.now() + seconds * 1000;
    const count = () => {
      const rest = Math.ceil((ready - Date.now()) / 1000);
      button.disabled = rest > 0;
      button.textContent = rest > 0 ? word("retry.in", { seconds: rest }) : word("retry");
      if (rest > 0 && button.isConnected) setTimeout(count, 250);
    };
    setTimeout(count);
    count();
    this.setActions(); // a retry of nothing is what another answer would be
  }

  /** Show how much of a proof of work is done. @param {number | null} share null: it is over */
  setChallenge(share) {
    let line = this.notes.querySelector("p.challenge");
    if (share === null) {
      line?.remove();
      return;
    }
    if (!line) {
      line = this.note("challenge", word("challenge.working"));
      line.append(" ", element("progress", { max: 1, "aria-label": word("challenge.working") }));
    }
    line.querySelector("progress").value = share;
  }

  /** Show the widget of a challenge. @param {HTMLElement} frame */
  setWidget(frame) {
    this.setChallenge(null);
    this.note("challenge", word("challenge.confirm"));
    this.notes.append(frame);
  }

  /** @param {string} [text] why nothing of the answer comes */
  setLost(text = word("reconnecting")) {
    const line = this.notes.querySelector(".reconnecting");
    if (line) line.textContent = text;
    else this.note("reconnecting", text);
  }

  /** @returns {boolean} whether it had been lost */
  setBack() {
    const line = this.notes.querySelector(".reconnecting");
    line?.remove();
    return Boolean(line);
  }

  /** @param {Message[]} versions */
  setVersions(versions) {
    this.versions = versions;
    this.setActions();
  }

  setActions() {
    this.actions.replaceChildren();
    if (this.isWriting) return;
    if (this.versions.length > 1) this.actions.append(this.branch());
    if (this.message.content) {
      const copy = iconButton("copy", word("copy.message"), () => copyFrom(copy, this.message.content));
      copy.classList.add("copy");
      this.actions.append(copy);
    }
    if (this.isMine) this.actions.append(iconButton("edit", word("edit"), () => this.acts.edit(this)));
    else if (this.message.content || !this.notes.querySelector(".retry")) this.actions.append(this.regenerate());
  }

  regenerate() {
    const button = iconButton("again", word("regenerate"), () => this.acts.again(this));
    const reason = this.acts.spent();
    if (reason) Object.assign(button, { disabled: true, title: reason });
    return button;
  }

  branch() {
    const index = this.versions.indexOf(this.message);
    const go = (step) => () => this.acts.version(this.versions[index + step]);
    const before = iconButton("back", word("branch.before"), go(-1));
    const after = iconButton("forth", word("branch.after"), go(1));
    before.disabled = index === 0;
    after.disabled = index === this.versions.length - 1;
    const which = word("branch.of", { index: index + 1, count: this.versions.length });
    return element("span", { class: "branch" }, before, element("span", {}, which), after);
  }
}

/** Copy, and confirm on the button for a while. @param {HTMLButtonElement} button @param {string} text */
export async function copyFrom(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!copyOldWay(text)) return;
  }
  const before = [...button.childNodes];
  const hasText = Boolean(button.textContent);
  button.replaceChildren(icon("done"), ...(hasText ? [word("copied")] : []));
  const label = button.ariaLabel;
  button.ariaLabel = word("copied");
  setTimeout(() => {
    button.replaceChildren(...before);
    button.ariaLabel = label;
  }, 2_000);
}

/** Over plain http the clipboard API is missing. */
function copyOldWay(text) {
  const area = element("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
