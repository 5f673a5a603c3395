// The page's code waits for the first paint: what a visitor sees first is all in the first response.

const LATE_MS = 300; // another page's frame that is out of sight may never be painted

if (!document.hidden) {
  await new Promise((next) => {
    requestAnimationFrame(() => setTimeout(next));
    setTimeout(next, LATE_MS);
  });
}
document.head.append(document.getElementById("modules").content); // all at once, not one after the other
await import("./chat.js");
