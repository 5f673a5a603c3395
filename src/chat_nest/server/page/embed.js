// <script src="https://chat.example/embed.js" async></script> on a page of your own: a button at the corner of the window
// that opens the chat. `data-label` is the button's name, `data-token` a token for the chat, `data-side` "left" or "right",
// `data-target` the id of an element to fill with the chat instead. The chat's server has to allow the page:
// `[page] embed_origins`.
(() => {
  const script = document.currentScript;
  const { label = "Chat", token = "", side = "right", target = "" } = script.dataset;
  const home = new URL(".", script.src);

  const frame = document.createElement("iframe");
  frame.title = label;
  frame.allow = "clipboard-write";
  frame.addEventListener("load", () => token && frame.contentWindow.postMessage({ chatNestToken: token }, home.origin));
  const round = { border: "0", borderRadius: "16px", colorScheme: "normal" };
  const place = document.getElementById(target);
  if (place) {
    Object.assign(frame.style, round, { width: "100%", height: "100%", minHeight: "24rem" });
    frame.src = home.href;
    place.append(frame);
    return;
  }

  const corner = { position: "fixed", zIndex: "2147483000", [side === "left" ? "left" : "right"]: "16px" };
  const button = document.createElement("button");
  const show = (isOpen) => {
    frame.hidden = !isOpen;
    frame.style.display = isOpen ? "block" : "none";
    button.textContent = isOpen ? "\u2715" : label;
    button.ariaExpanded = String(isOpen);
  };
  button.type = "button";
  button.ariaLabel = label;
  Object.assign(button.style, corner, {
    bottom: "16px", padding: "12px 20px", border: "0", borderRadius: "24px", background: "#0f766e", color: "#ffffff",
    font: "600 16px system-ui, sans-serif", cursor: "pointer", boxShadow: "0 4px 16px rgb(0 0 0 / 25%)",
  });
  Object.assign(frame.style, corner, round, {
    bottom: "76px", width: "min(400px, calc(100vw - 32px))", height: "min(640px, calc(100dvh - 96px))",
    boxShadow: "0 8px 40px rgb(0 0 0 / 30%)", outline: "1px solid rgb(128 128 128 / 35%)",
  });
  button.addEventListener("click", () => {
    frame.src ||= home.href; // loads nothing before the first use
    show(frame.hidden);
    if (!frame.hidden) frame.focus();
  });
  show(false);
  const add = () => document.body.append(frame, button);
  if (document.body) add();
  else addEventListener("DOMContentLoaded", add);
})();
