// Blocks of code: their lines, and the colours. highlight.js runs in a worker, so the page never waits for it. The
// colours are applied a few lines in each frame.

import { element } from "./dom.js";
import { answering } from "./workers.js";

const MAX_CHARACTERS = 50_000;
/** The coloured pieces of one frame, and the time to make them: their layout takes longer than that. */
const SLICE = { pieces: 100, ms: 4 };
/** Lines that are laid out together: a new line costs the layout of these, not of the whole block. */
const TOGETHER = 10;

/** Add text to a block of code. @param {HTMLElement} code @param {string} text */
export function appendLines(code, text) {
  let block = code.lastElementChild;
  let count = block ? (block.textContent?.split("\n").length ?? 1) - 1 : TOGETHER;
  for (const line of text.match(/[^\n]*\n|[^\n]+/g) ?? []) {
    if (!block || (count >= TOGETHER && block.textContent?.endsWith("\n"))) {
      block = element("span", { class: "lines" });
      code.append(block);
      count = 0;
    }
    if (block.lastChild instanceof Text) block.lastChild.appendData(line);
    else block.append(line);
    if (line.endsWith("\n")) count += 1;
  }
}

const highlighted = answering("code-worker.js");

/** Highlight a finished block of code. @param {HTMLElement} code */
export async function colour(code) {
  const language = /language-(\S+)/.exec(code.className)?.[1];
  const text = code.textContent ?? "";
  if (!language || code.dataset.coloured || text.length > MAX_CHARACTERS) return;
  code.dataset.coloured = language;
  const pieces = await highlighted({ language, text });
  if (pieces) await (filling = filling.then(() => fill(code, pieces)));
}

/** One block after the other: a stored conversation opens with many. */
let filling = Promise.resolve();
/** A task after the next frame: the frame's own task has the layout of what the last slice made. */
const afterFrame = () => new Promise((next) => (document.hidden ? setTimeout(next) : requestAnimationFrame(() => setTimeout(next))));

/** Put the pieces where their text is, some lines at a time. @param {HTMLElement} code @param {[string, string][]} pieces */
async function fill(code, pieces) {
  let until = performance.now() + SLICE.ms;
  let most = SLICE.pieces;
  let next = 0;
  let [name, rest] = pieces[0] ?? ["", ""];
  for (const block of [...code.children]) {
    const coloured = document.createDocumentFragment();
    for (let room = block.textContent?.length ?? 0; room > 0 && next < pieces.length; ) {
      const piece = rest.slice(0, room);
      room -= piece.length;
      rest = rest.slice(piece.length);
      coloured.append(name ? element("span", { class: name }, piece) : piece);
      if (!rest) [name, rest] = pieces[(next += 1)] ?? ["", ""];
    }
    block.replaceChildren(coloured);
    if (next < most && performance.now() < until) continue;
    await afterFrame();
    until = performance.now() + SLICE.ms;
    most = next + SLICE.pieces;
  }
}
