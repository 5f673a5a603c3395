// Highlights code, and returns pieces of [class, text]: no markup leaves this worker.

import hljs from "./lib/highlight.js-11.12.0/highlight.min.js";

const MARKS = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'" };

/** @param {string} html the output of highlight.js: spans with a class, and escaped text */
function pieces(html) {
  const found = [];
  const open = [];
  for (const [, name, end, text] of html.matchAll(/<span class="([^"]*)">|(<\/span>)|([^<]+)/g)) {
    if (name !== undefined) open.push(name);
    else if (end) open.pop();
    else found.push([open.at(-1) ?? "", text.replace(/&(?:amp|lt|gt|quot|#x27);/g, (mark) => MARKS[mark])]);
  }
  return found;
}

addEventListener("message", ({ data: { id, question } }) => {
  const { language, text } = question;
  const known = hljs.getLanguage(language);
  postMessage({ id, answer: known ? pieces(hljs.highlight(text, { language, ignoreIllegals: true }).value) : null });
});
