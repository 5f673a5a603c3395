// Keep the end of the log in view while it grows, unless the reader has scrolled up.

import { byId } from "./dom.js";

const scroller = byId("scroller");
let atEnd = true;
let scrolledTo = 0;

/** Keep the end in view. */
export function follow() {
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
  byId("to-end").hidden = atEnd;
}

/** Go to the end, and follow it from there. */
export function toEnd() {
  atEnd = true;
  follow();
}

// Only scrolling up ends the following: what grows moves the end away too, and is followed a moment later.
scroller.addEventListener("scroll", () => {
  const near = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
  atEnd = near || (atEnd && scroller.scrollTop >= scrolledTo);
  scrolledTo = scroller.scrollTop;
  byId("to-end").hidden = atEnd;
});
byId("to-end").addEventListener("click", () => {
  toEnd();
  byId("prompt").focus();
});
new ResizeObserver(follow).observe(scroller);
new ResizeObserver(follow).observe(byId("log")); // formulas and colours come later
