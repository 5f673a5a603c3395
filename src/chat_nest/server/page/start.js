// The page's code waits for the first paint: what a visitor sees first is all in the first response. What is sent before
// the code is there is sent then.

const LATE_MS = 300; // another page's frame that is out of sight may never be painted
const onScreen = matchMedia("(pointer: coarse) and (not (any-pointer: fine))"); // as in keyboard.js
const composer = document.getElementById("composer");
let isSent = false;

function hold(event) {
  const isEnter = event.key === "Enter" && event.target.id === "prompt" && !event.shiftKey && !event.isComposing && !onScreen.matches;
  if (event.type !== "submit" && !isEnter) return;
  event.preventDefault();
  event.stopPropagation();
  isSent = true;
}
for (const type of ["submit", "keydown"]) composer.addEventListener(type, hold, true);

if (!document.hidden) {
  await new Promise((next) => {
    requestAnimationFrame(() => setTimeout(next));
    setTimeout(next, LATE_MS);
  });
}
document.head.append(document.getElementById("modules").content); // all at once, not one after the other
await import("./chat.js");
for (const type of ["submit", "keydown"]) composer.removeEventListener(type, hold, true);
if (isSent) composer.requestSubmit();
