// The keys of the page: what they send, stop, search and start.

import { byId } from "./dom.js";
import * as side from "./side.js";

/** A keyboard on a screen has no Shift+Enter: its Enter starts a new line, and the button sends. */
const onScreen = matchMedia("(pointer: coarse) and (not (any-pointer: fine))");

/** @param {{send: () => void, open: () => void, escape: () => void}} acts */
export function start(acts) {
  byId("prompt").enterKeyHint = onScreen.matches ? "enter" : "send";
  byId("prompt").addEventListener("keydown", (event) => {
    const composing = event.isComposing || event.keyCode === 229; // Safari's last Enter of a composition
    if (event.key !== "Enter" || event.shiftKey || composing || (onScreen.matches && !event.ctrlKey)) return;
    event.preventDefault();
    acts.send();
  });
  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const isShortcut = (event.ctrlKey || event.metaKey) && !event.altKey && (event.shiftKey ? key === "o" : key === "k");
    if (!isShortcut || byId("settings").open || byId("picture").open) return;
    event.preventDefault();
    if (key === "o") acts.open();
    else side.setOpen(true);
  });
  document.addEventListener("keydown", (event) => {
    const isElsewhere = byId("side").contains(event.target) || byId("settings").open || byId("picture").open || byId("item-menu").matches(":popover-open");
    if (event.key === "Escape" && !event.isComposing && !event.defaultPrevented && !isElsewhere) acts.escape();
  });
}
