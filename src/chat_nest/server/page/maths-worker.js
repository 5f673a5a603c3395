// Draws formulas with KaTeX, and returns them as plain objects, of which the page makes elements. KaTeX makes elements of
// a document; here it gets one that only notes what is made.

import "./lib/katex-0.19.1/katex.min.js";

const MOST = { maxExpand: 200, maxSize: 20 };

class Noted {
  /** @param {string} name @param {string} [space] */
  constructor(name, space = "") {
    Object.assign(this, { name, space, attributes: {}, style: {} });
    /** @type {(Noted | string)[]} */
    this.children = [];
  }

  set className(value) {
    this.setAttribute("class", value);
  }

  set textContent(text) {
    this.children = text ? [text] : [];
  }

  setAttribute(name, value) {
    if (name !== "style") this.attributes[name] = String(value); // the page's policy forbids styles as text
  }

  /** @param {Noted | string} child */
  appendChild(child) {
    if (child instanceof Noted && !child.name) this.children.push(...child.children);
    else this.children.push(child);
  }
}

globalThis.document = /** @type {any} */ ({
  createElement: (name) => new Noted(name),
  createElementNS: (space, name) => new Noted(name, space),
  createTextNode: (text) => text,
  createDocumentFragment: () => new Noted(""),
});

addEventListener("message", ({ data: { id, question } }) => {
  const { tex, display } = question;
  const drawn = new Noted("span");
  try {
    globalThis.katex.render(tex, drawn, { displayMode: display, trust: false, strict: "ignore", ...MOST });
    postMessage({ id, answer: drawn.children });
  } catch {
    postMessage({ id, answer: null }); // it is wrong, and shown as it is written
  }
});
