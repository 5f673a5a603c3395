// The operators' page: signing in, the stream, and its parts.

import * as acts from "./acts.js";
import { key, onRefused, setKey } from "./api.js";
import * as board from "./board.js";
import { byId, element } from "./dom.js";
import * as keys from "./keys.js";
import { follow } from "./live.js";
import * as spend from "./spend.js";
import { choose, config, language, languageName, load, word } from "./words.js";

/** @type {ReturnType<typeof follow> | null} */
let stream = null;
let state = "";

/** @param {string} [problem] why the operator has to sign in */
function askForKey(problem = "") {
  stream?.stop();
  stream = null;
  setKey("");
  byId("act").close();
  for (const place of ["board", "sign-out", "reload"]) byId(place).hidden = true;
  byId("sign-in").hidden = false;
  byId("key-problem").hidden = !problem;
  byId("key-problem").textContent = problem;
  byId("key").value = "";
  byId("key").focus();
  showState("");
}

function begin() {
  stream?.stop();
  const answered = () => {
    if (byId("sign-in").hidden && !byId("board").hidden) return;
    byId("sign-in").hidden = true;
    for (const place of ["board", "sign-out", "reload"]) byId(place).hidden = false;
    if (document.activeElement === document.body || byId("sign-in").contains(document.activeElement)) byId("main").focus();
    spend.read();
    keys.read();
  };
  stream = follow({
    part(name, data) {
      answered();
      board.show(name, data);
    },
    state: showState,
    refused: () => askForKey(word("key.removed")),
  });
}

/** @param {string} now @param {string} [problem] */
function showState(now, problem = "") {
  const text = now ? word(`link.${now}`) + (problem ? `: ${problem}` : "") : "";
  if (state === now + text) return;
  state = now + text;
  byId("link").dataset.state = now;
  byId("link").textContent = text;
  document.body.classList.toggle("stale", now === "lost" || (now === "connecting" && document.body.classList.contains("stale")));
  if (!byId("sign-in").hidden && now === "lost" && key()) {
    byId("key-problem").textContent = problem || word("unreachable");
    byId("key-problem").hidden = false;
  }
}

onRefused(() => askForKey(word(byId("board").hidden ? "key.wrong" : "key.removed")));

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("key-problem").hidden = true;
  setKey(byId("key").value.trim());
  begin();
});
byId("sign-out").addEventListener("click", () => askForKey());
byId("reload").addEventListener("click", () => acts.reload());
byId("pause").addEventListener("click", () => acts.pauseAny());
byId("block").addEventListener("click", () => acts.block());
byId("grant").addEventListener("click", () => acts.grant());
byId("reset").addEventListener("click", () => acts.reset());
byId("language").append(...config.languages.map((tag) => element("option", { value: tag, lang: tag }, languageName(tag))));
byId("language").addEventListener("change", async () => {
  await choose(byId("language").value);
  speak();
});

/** Draw what is not in the page's own words. */
function speak() {
  document.title = word("title");
  byId("language").value = language;
  state = "";
  showState(byId("link").dataset.state ?? "");
  board.start();
  spend.start();
  keys.start();
}

await load();
speak();
acts.offer(board.names);
if (key()) begin();
else askForKey();
document.documentElement.dataset.ready = "";
