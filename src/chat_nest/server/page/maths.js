// Formulas: $$...$$, \[...\], \(...\) and $...$ in Markdown, drawn by KaTeX, in a worker that starts with the first one.
// Styles are set through the DOM, so the page's policy holds; KaTeX trusts no command that links or loads.

import { element } from "./dom.js";
import { answering } from "./workers.js";

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

const drawing = answering("maths-worker.js");
/** Almost every formula needs these: with them there, it is laid out once. */
const FONTS = ["1em KaTeX_Main", "italic 1em KaTeX_Math"];
/** @type {Promise<boolean> | null} */
let styled = null;

/** Load the style sheet of formulas. @returns {Promise<boolean>} whether it is there: without it, a formula would be shown twice */
function style() {
  styled ??= new Promise((resolve) => {
    const link = element("link", { rel: "stylesheet", href: "lib/katex-0.19.1/katex.min.css", onload: () => resolve(true) });
    link.addEventListener("error", () => {
      link.remove();
      styled = null; // the next formula tries again
      resolve(false);
    });
    document.head.append(link);
  });
  return styled;
}

/**
 * Load what makes the browser compute the whole page again, while the page is short: the names of the fonts, and the styles
 * of MathML, which are there with its first element.
 */
export async function prepareFormulas() {
  await style();
  const first = document.createElementNS("http://www.w3.org/1998/Math/MathML", "math");
  first.setAttribute("class", "unseen");
  first.setAttribute("aria-hidden", "true");
  first.append(document.createElementNS(first.namespaceURI, "mi"));
  document.body.append(first);
  requestAnimationFrame(() => setTimeout(() => first.remove()));
}

/** @param {any} noted what the worker noted @returns {Node | string} */
function made(noted) {
  if (typeof noted === "string") return noted;
  const { name, space, attributes, style: styles, children } = noted;
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  Object.assign(node.style, styles);
  node.append(...children.map(made));
  return node;
}

/** Draw the formulas of these elements, each in a task of its own; one that is wrong stays as it is written. @param {Element} root */
export async function renderMath(root) {
  const found = [...root.querySelectorAll(".math:not([data-tex])")];
  if (root.matches(".math:not([data-tex])")) found.push(root);
  if (!found.length) return;
  if (!(await style())) return;
  await Promise.allSettled(FONTS.map((font) => document.fonts.load(font)));
  for (const formula of found) {
    const tex = formula.textContent ?? "";
    if (formula.hasAttribute("data-tex") || tex.length > MAX_CHARACTERS) continue;
    const drawn = await drawing({ tex, display: formula.matches(".display") });
    if (!drawn || formula.hasAttribute("data-tex") || formula.textContent !== tex) continue;
    formula.setAttribute("data-tex", tex);
    formula.replaceChildren(...drawn.map(made));
  }
}

/** @param {Node} old @param {Node} next @returns {boolean} whether `old` is `next`, drawn */
export const isFormula = (old, next) =>
  old instanceof HTMLElement && next instanceof HTMLElement && old.dataset.tex !== undefined &&
  old.className === next.className && old.dataset.tex === next.textContent;
