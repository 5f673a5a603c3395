// Keep the end of the log in view while it grows, unless the reader has scrolled up.

import { byId } from "./dom.js";

const scroller = byId("scroller");
let atEnd = true;
let seen = { top: 0, bottom: 0 };

/** Keep the end in view. The welcome begins at its top. */
function follow() {
  if (atEnd && byId("log").hasChildNodes()) scroller.scrollTop = scroller.scrollHeight;
  byId("to-end").hidden = atEnd;
}

/** Go to the end in the next frame, and follow it from there. */
export function toEnd() {
  requestAnimationFrame(() => {
    atEnd = true;
    follow();
  });
}

// Only scrolling up ends the following: what grows moves the end away too, and is followed a moment later. If the box
// below becomes smaller, the top moves up and the bottom stays.
scroller.addEventListener("scroll", () => {
  const { scrollTop: top, clientHeight, scrollHeight } = scroller;
  const bottom = top + clientHeight;
  atEnd = scrollHeight - bottom < 40 || (atEnd && (top >= seen.top || bottom >= seen.bottom));
  seen = { top, bottom };
  byId("to-end").hidden = atEnd;
});
byId("to-end").addEventListener("click", () => {
  toEnd();
  byId("prompt").focus();
});
// An observer is called when a frame has its layout. So to follow what grows costs no layout of its own.
new ResizeObserver(follow).observe(scroller);
new ResizeObserver(follow).observe(byId("log"));
