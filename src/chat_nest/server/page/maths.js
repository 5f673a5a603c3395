// Formulas: $$...$$, \[...\], \(...\) and $...$ in Markdown, drawn by KaTeX, which is loaded when the first one comes.
// KaTeX sets styles through the DOM, so the page's policy holds; it trusts no command that links or loads.

import { element } from "./dom.js";

const escaped = (text) => text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
const MAX_CHARACTERS = 4_000;

const render = ({ tex, display }) =>
  display ? `<p class="math display">${escaped(tex)}</p>` : `<code class="math">${escaped(tex)}</code>`;

/** A formula of its own, also one that is still being written: its end is then the end of the text. */
export const mathBlock = {
  name: "mathBlock",
  level: "block",
  start: (source) => /^ {0,3}(?:\$\$|\\\[)/m.exec(source)?.index,
  tokenizer(source) {
    const found = /^ {0,3}(?:\$\$([^$]+?)(?:\$\$|\$?$(?![\s\S]))|\\\[([\s\S]+?)(?:\\\]|$(?![\s\S])))[ \t]*(?:\n|$)/.exec(source);
    return found && { type: "mathBlock", raw: found[0], tex: (found[1] ?? found[2]).trim(), display: true };
  },
  renderer: render,
};

/** As pandoc has it: no space inside the dollars, and no digit behind them, so prices are no formulas. */
export const mathInline = {
  name: "mathInline",
  level: "inline",
  start: (source) => /\$|\\\(|\\\[/.exec(source)?.index,
  tokenizer(source) {
    const found =
      /^\$\$([^$\n]+)\$\$|^\\\[([\s\S]+?)\\\]|^\\\(([\s\S]+?)\\\)|^\$(?![\s$])((?:\\.|[^$\n\\])*?[^\s$\\])\$(?!\d)/.exec(source);
    if (!found) return undefined;
    return { type: "mathInline", raw: found[0], tex: found.slice(1).find(Boolean).trim(), display: false };
  },
  renderer: render,
};

/** @type {Promise<any> | null} */
let loading = null;

function load() {
  loading ??= (async () => {
    document.head.append(element("link", { rel: "stylesheet", href: "lib/katex-0.19.1/katex.min.css" }));
    await import("./lib/katex-0.19.1/katex.min.js");
    return /** @type {any} */ (globalThis).katex;
  })();
  return loading;
}

/** Draw the formulas of these elements; one that is wrong stays as it is written. @param {Element} root */
export async function renderMath(root) {
  const found = [...root.querySelectorAll(".math:not([data-tex])")];
  if (root.matches(".math:not([data-tex])")) found.push(root);
  if (!found.length) return;
  const katex = await load().catch(() => null); // it is shown as it is written
  for (const formula of found) {
    await new Promise((later) => setTimeout(later)); // each is a task of its own, and so is the first use of KaTeX
    const tex = formula.textContent ?? "";
    if (!katex || formula.hasAttribute("data-tex") || tex.length > MAX_CHARACTERS) continue;
    const drawn = document.createElement("span");
    try {
      katex.render(tex, drawn, { displayMode: formula.matches(".display"), trust: false, strict: "ignore", maxExpand: 200, maxSize: 20 });
    } catch {
      continue;
    }
    formula.setAttribute("data-tex", tex);
    formula.replaceChildren(...drawn.childNodes);
  }
}

/** @param {Node} old @param {Node} next @returns {boolean} whether `old` is `next`, drawn */
export const isFormula = (old, next) =>
  old instanceof HTMLElement && next instanceof HTMLElement && old.dataset.tex !== undefined &&
  old.className === next.className && old.dataset.tex === next.textContent;
