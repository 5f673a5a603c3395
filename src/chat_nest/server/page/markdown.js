// Markdown while it is written. marked parses it, DOMPurify makes the elements, and neither passes a model's HTML:
// marked treats HTML as text here, and DOMPurify passes only what is listed below.
//
// A block (a paragraph, a list's item, a table's row) that another one follows is finished: it is made once and never changed. So a
// token costs the layout of its own block. Blocks stand together in parts of about a screen: a part out of sight costs
// nothing, however long the answer is.

import "./lib/dompurify-3.5.0/purify.min.js";
import { Marked } from "./lib/marked-18.2.1/marked.esm.js";
import { appendLines, colour } from "./code.js";
import { element, icon } from "./dom.js";
import { isFormula, mathBlock, mathInline, renderMath } from "./maths.js";
import { word } from "./words.js";

export { prepareFormulas } from "./maths.js";

/** @type {any} */
const { DOMPurify } = /** @type {any} */ (globalThis);

const ALLOWED = {
  ALLOWED_TAGS: [
    ...["p", "br", "hr", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "del", "a"],
    ...["table", "thead", "tbody", "tr", "th", "td"],
  ],
  ALLOWED_ATTR: ["href", "title", "class", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["align", "start"], // values that are no addresses
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) => text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true, // a model's line feed is a line break
  tokenizer: { html: () => undefined, tag: () => undefined }, // HTML is text
  extensions: [mathBlock, mathInline],
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2); // below the page's own headings
      return `<h${level} class="depth-${depth}">${this.parser.parseInline(tokens)}</h${level}>`;
    },
    code: ({ text, lang }) => {
      const name = /^[\w+#.-]{1,30}/.exec(lang ?? "")?.[0] ?? "";
      return `<pre><code${name && ` class="language-${escaped(name)}"`}>${escaped(text)}</code></pre>`;
    },
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`, // never loaded
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

/** @param {any[]} tokens @returns {DocumentFragment} */
function made(tokens) {
  const fragment = DOMPurify.sanitize(marked.parser(tokens), ALLOWED);
  for (const node of [...fragment.childNodes, ...[...fragment.querySelectorAll("ul, ol")].flatMap((list) => [...list.childNodes])]) {
    if (node instanceof Text && !node.data.trim()) node.remove(); // between blocks
  }
  for (const item of fragment.querySelectorAll("li")) {
    // An item's first words are shown alike, whether a blank line follows or not: that is known only later.
    const { firstElementChild: first } = item;
    if (first?.matches("p:not(.math)") && first === item.firstChild) first.replaceWith(...first.childNodes);
    if (item.lastChild instanceof Text && !item.lastChild.data.trim()) item.lastChild.remove();
  }
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) link.replaceWith(...link.childNodes); // of another scheme: only its words are left
    else Object.assign(link, { target: "_blank", rel: "noopener noreferrer nofollow" });
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = element("div", { class: "table", tabindex: "0", role: "region", "aria-label": word("table") });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const pre of fragment.querySelectorAll("pre")) frameCode(pre);
  return fragment;
}

/** @param {HTMLPreElement} pre */
function frameCode(pre) {
  const language = /language-(\S+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
  const copy = element("button", { type: "button", class: "link copy-code", "aria-label": word("copy.code") }, icon("copy"), word("copy"));
  const frame = element("div", { class: "code" }, element("div", { class: "code-head" }, language || word("code"), copy));
  const text = pre.textContent ?? "";
  const code = /** @type {HTMLElement} */ (pre.firstElementChild);
  code.replaceChildren();
  appendLines(code, text);
  pre.replaceWith(frame);
  for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", language || word("code")], ["dir", "ltr"]]) {
    pre.setAttribute(name, value);
  }
  frame.append(pre);
}

const isFinished = (token) => token.type !== "space";
/** The sign that the items of a list begin with. */
const markOf = ({ raw }) => /^ *(?:\d+([.)])|([-+*]))/.exec(raw)?.slice(1).join("") ?? "";
/** Words that mean nothing to Markdown, on a line that is long enough to be no heading and no list. */
const PLAIN = /^[\p{L}\p{M}\p{N} ,.;?!()'"“”‘’…—–、。，！？]*$/u;
const UNFINISHED = /[^\n]{40}$/;
/** A last word that may be an address, of which a link is made. */
const ADDRESS = /(?:[:/@]|www)\S*$/i;
const FENCE = /^(`{3,}|~{3,})/;
/** A block begins a new part when the last one has so many characters of Markdown. */
const PART = 2_000;

/** The Markdown of one answer in `root`, which grows. */
export class Markdown {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    root.replaceChildren();
    this.source = "";
    this.begin();
  }

  begin() {
    this.start = 0; // where the open block begins in the source
    /** @type {Element | null} */
    this.part = null; // the last one
    this.partStart = 0;
    /** @type {ChildNode | null} */
    this.open = null; // its first node
    /** @type {Element | null} */
    this.list = null; // the list that the open block may go on with
    /** @type {{list: Element, mark: string} | null} */
    this.lastList = null;
    /** @type {{head: string, body: Element} | null} */
    this.table = null; // the table that the open block is the last row of
    /** @type {{code: HTMLElement, fence: string, seen: number} | null} */
    this.code = null; // an open block of code: what comes is appended
    /** @type {Text | null} */
    this.prose = null; // the end of an open paragraph: plain words are appended
    this.isStale = false; // whether words were
    this.links = false;
  }

  /** Show the text, which begins with what was shown before. @param {string} source */
  update(source) {
    if (!source.startsWith(this.source)) {
      this.root.replaceChildren();
      this.begin();
    }
    const before = this.source;
    this.source = source;
    if (!this.appendCode() && !this.appendProse(before)) this.renderOpen();
  }

  /** The answer is complete. */
  finish() {
    if (this.isStale) this.renderOpen();
    if (this.links) {
      // A link's address may stand at the end of the text, far from its block.
      this.root.replaceChildren();
      this.begin();
      for (const token of marked.lexer(this.source)) {
        this.list = null;
        this.place(token, true);
      }
    }
    renderMath(this.root);
    for (let node = this.open; node; node = node.nextSibling) this.closed(node);
    this.code = null;
  }

  /** @returns {boolean} whether the new text was only more of an open block of code */
  appendCode() {
    if (!this.code) return false;
    const { code, fence, seen } = this.code;
    const lineStart = this.source.lastIndexOf("\n", seen - 1) + 1;
    const fresh = this.source.slice(lineStart);
    if (fresh.split("\n").some((line) => line.trimStart().startsWith(fence))) return false;
    const end = this.source.endsWith("\n") ? this.source.length - 1 : this.source.length; // a last line is not empty
    if (end > seen) appendLines(code, this.source.slice(seen, end));
    this.code.seen = Math.max(end, seen);
    return true;
  }

  /** @param {string} before @returns {boolean} whether the new text was only more plain words of a paragraph */
  appendProse(before) {
    const fresh = this.source.slice(before.length);
    if (!this.prose || !PLAIN.test(fresh) || !UNFINISHED.test(before) || ADDRESS.test(this.source.slice(-200))) return false;
    this.prose.appendData(fresh);
    this.isStale = true;
    return true;
  }

  renderOpen() {
    this.isStale = false;
    const head = this.table?.head ?? "";
    const tokens = marked.lexer(head + this.source.slice(this.start));
    if (head) tokens[0].raw = tokens[0].raw.slice(head.length);
    this.links ||= Object.keys(tokens.links).length > 0;
    const last = tokens.findLastIndex(isFinished);
    for (const [index, token] of tokens.slice(0, last + 1).entries()) {
      if (index) this.list = this.table = null; // only the first one may go on with what is there
      else if (token.type === "list") this.findList(token);
      if (index < last) this.place(token, true);
      else this.place(token.type === "table" ? this.splitTable(token) : this.splitList(token), false);
    }
    this.code = this.openCode(tokens[last]);
    const end = tokens[last]?.type === "paragraph" && this.open ? this.open.lastChild : null;
    this.prose = end instanceof Text && this.source.endsWith(end.data) ? end : null;
  }

  /** A list may go on behind what looked like its end: "3" is a paragraph until "3." comes. */
  findList(token) {
    const { list, mark } = this.lastList ?? {};
    const before = this.open ? this.open.previousSibling : this.part?.lastChild;
    if (!this.list && list && list === before && mark === markOf(token)) this.list = list;
  }

  /** All items of a list but the last are finished. @param {any} token @returns {any} the last of the list */
  splitList(token) {
    if (token.type !== "list" || token.items.length < 2) return token;
    const done = token.items.slice(0, -1);
    const raw = done.map((item) => item.raw).join("");
    if (!token.raw.startsWith(raw)) return token;
    this.place({ ...token, items: done, raw }, true, true);
    return { ...token, items: token.items.slice(-1), raw: token.raw.slice(raw.length) };
  }

  /** All rows of a table but the last are finished: each is a line. @param {any} token @returns {any} the last of the table */
  splitTable(token) {
    const { rows, raw } = token;
    const head = this.table ? "" : /^.*\n.*\n/.exec(raw)?.[0] ?? raw;
    const lines = raw.slice(head.length).match(/.*\S.*\n?/g) ?? [];
    if (rows.length < 2 || lines.length !== rows.length) return token;
    const done = head + lines.slice(0, -1).join("");
    this.put({ ...token, rows: rows.slice(0, -1), raw: done }, true, false);
    this.table ??= { head, body: /** @type {any} */ (this.part?.lastElementChild).querySelector("tbody") };
    return { ...token, rows: rows.slice(-1), raw: raw.slice(done.length) };
  }

  /** @param {any} token @param {boolean} finished @param {boolean} goesOn whether more items of this list follow */
  place(token, finished, goesOn = false) {
    if (token.type !== "list") this.put(token, finished, goesOn);
    else for (const group of this.groups(token)) this.put(group, finished, goesOn || group.goesOn);
  }

  /** A list in groups of items: each but the last fills a part. @param {any} token */
  *groups(token) {
    let items = [];
    let raw = "";
    let rest = token.raw;
    for (const item of rest.startsWith(token.items.map((each) => each.raw).join("")) ? token.items : []) {
      if (items.length && this.isFull(raw.length)) {
        yield { ...token, items, raw, goesOn: true };
        items = [];
        raw = "";
      }
      items.push(item);
      raw += item.raw;
      rest = rest.slice(item.raw.length);
    }
    yield items.length ? { ...token, items, raw: raw + rest } : token;
  }

  /** @param {any} token @param {boolean} finished @param {boolean} goesOn */
  put(token, finished, goesOn) {
    const fragment = made([token]);
    if (!this.open && !this.list && !this.table && token.type !== "space") this.beginPart();
    if (this.list && token.type === "list" && this.isFull()) this.list = this.listBehind(this.list);
    if (this.list && token.type === "list") this.atEnd(this.list, childrenOf(fragment.firstElementChild), finished);
    else if (this.table && token.type === "table") this.atEnd(this.table.body, childrenOf(fragment.querySelector("tbody")), finished);
    else if (token.type !== "space") this.atEnd(/** @type {Element} */ (this.part), fragment, finished);
    if (token.type === "list") {
      const list = this.list ?? (finished ? this.part?.lastElementChild : null);
      if (list) this.lastList = { list, mark: markOf(token) };
    }
    if (finished) this.start += token.raw.length;
    if (goesOn) this.list = this.list ?? /** @type {Element} */ (this.part?.lastChild);
  }

  /** @param {number} more characters behind the last finished block @returns {boolean} whether what follows begins a new part */
  isFull(more = 0) {
    return this.start + more - this.partStart >= PART;
  }

  /** If the last part is full, or there is none. A list may still go on behind its end: what follows it stays with it. */
  beginPart() {
    if (this.part && !(this.isFull() && !this.part.lastElementChild?.matches("ul, ol"))) return;
    this.part = element("div", { class: "part" });
    this.partStart = this.start;
    this.root.append(this.part);
  }

  /** A list in a new part, in which the items behind those of `before` follow. @param {any} before */
  listBehind(before) {
    const count = this.open?.parentNode === before ? [...before.children].indexOf(this.open) : before.childElementCount;
    const list = element(before.localName, { class: "goes-on", start: before.start !== undefined && before.start + count });
    this.part = element("div", { class: "part" }, list);
    this.partStart = this.start;
    this.root.append(this.part);
    return list;
  }

  /** Put the fragment where the open block is. */
  atEnd(parent, fragment, finished) {
    const open = this.open?.parentNode === parent ? this.open : null;
    if (this.open && !open) remove(this.open);
    const before = open ? open.previousSibling : parent.lastChild;
    patch(parent, open, fragment);
    const first = before ? before.nextSibling : parent.firstChild;
    this.open = finished ? null : first;
    if (!finished) return;
    for (let node = first; node; node = node.nextSibling) this.closed(node);
  }

  /** @param {ChildNode} node a block that does not change any more */
  closed(node) {
    if (!(node instanceof Element)) return;
    renderMath(node);
    for (const code of node.querySelectorAll("pre > code[class]")) colour(/** @type {HTMLElement} */ (code));
  }

  openCode(token) {
    const fence = token?.type === "code" && FENCE.exec(token.raw)?.[1];
    if (!fence || token.raw.length < fence.length || !token.raw.includes("\n")) return null;
    const code = /** @type {HTMLElement | null} */ (this.part?.lastElementChild?.querySelector("pre > code"));
    const isWhole = new RegExp(`\\n {0,3}${fence[0]}{${fence.length},}\\s*$`).test(token.raw);
    if (isWhole || !code?.textContent) return null;
    const line = this.source.endsWith("\n") ? this.source.length - 1 : this.source.length;
    return { code, fence, seen: line };
  }
}

/** @param {Element | null} node */
function childrenOf(node) {
  const children = document.createDocumentFragment();
  children.append(...(node?.childNodes ?? []));
  return children;
}

function remove(node) {
  for (let next; node; node = next) {
    next = node.nextSibling;
    node.remove();
  }
}

/** Make the children of `parent` from `old` on like the fragment's, and leave alone what is the same already. */
function patch(parent, old, fragment) {
  for (const next of [...fragment.childNodes]) {
    const following = old?.nextSibling ?? null;
    if (old) merge(old, next);
    else parent.append(next);
    old = following;
  }
  remove(old);
}

function merge(old, next) {
  if (old.isEqualNode(next) || isFormula(old, next)) return;
  if (old instanceof Text && next instanceof Text) {
    if (next.data.startsWith(old.data)) old.appendData(next.data.slice(old.data.length));
    else old.data = next.data;
  } else if (old instanceof Element && next instanceof Element && old.cloneNode(false).isEqualNode(next.cloneNode(false))) {
    patch(old, old.firstChild, next);
  } else old.replaceWith(next);
}
