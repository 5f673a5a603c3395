// A message that goes by itself, with one thing to do, such as an undo.

import { byId, element } from "./dom.js";

const SHOWN_MS = 10_000;
let hiding = 0;

/** @param {string} text @param {string} [label] @param {() => void} [act] */
export function toast(text, label, act) {
  const box = byId("toast");
  clearTimeout(hiding);
  const hide = () => {
    box.hidden = true;
    box.replaceChildren();
  };
  box.replaceChildren(element("span", {}, text));
  if (label && act) box.append(element("button", { type: "button", class: "link", onclick: () => (hide(), act()) }, label));
  box.hidden = false;
  hiding = setTimeout(hide, SHOWN_MS);
}
