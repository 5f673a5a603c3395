// The dialog of settings: key, instructions, language, and all conversations at once.

import { byId, element } from "./dom.js";
import { key, setKey } from "./run.js";
import * as side from "./side.js";
import * as store from "./store.js";
import { choose, config, language, languageName, word } from "./words.js";

/**
 * @typedef {{system: () => string, setSystem: (text: string) => void, hasSystem: () => boolean,
 *   spoken: () => Promise<void>, keyed: () => void}} Acts
 */
/** @type {Acts} */
let acts;

/** @param {Acts} given */
export function start(given) {
  acts = given;
  byId("open-settings").addEventListener("click", () => open());
  byId("cancel-settings").addEventListener("click", () => byId("settings").close(""));
  byId("settings").addEventListener("close", save);
  byId("export-all").addEventListener("click", async () => {
    const talks = await store.talks();
    side.exportJson(talks.map(({ id }) => id), config.title);
  });
  byId("delete-all").addEventListener("click", async () => {
    byId("settings").close("");
    const talks = await store.talks();
    if (talks.length) side.remove(talks.map(({ id }) => id), word("deleted.all"));
  });
  byId("key-field").hidden = !config.wants_key;
  if (parent !== window) addEventListener("message", fromParent);
}

/** An embedding page may send a token. The policy limits embedding to allowed origins. */
function fromParent({ source, data }) {
  if (source !== parent || typeof data?.chatNestToken !== "string") return;
  setKey(data.chatNestToken);
  acts.keyed();
}

/** The names of languages take long: a start needs none. */
function drawLanguages() {
  byId("language").append(...config.languages.map((tag) => element("option", { value: tag, lang: tag }, languageName(tag))));
}

export function open() {
  side.closeDrawer();
  if (!byId("language").length) drawLanguages();
  byId("key").value = key();
  byId("system").value = acts.system();
  byId("system-field").hidden = !acts.hasSystem();
  byId("language").value = language;
  byId("settings").returnValue = "";
  byId("settings").showModal();
  if (config.wants_key) byId("key").focus();
}

async function save() {
  if (byId("settings").returnValue !== "save") return;
  if (acts.hasSystem()) acts.setSystem(byId("system").value.trim());
  if (byId("language").value !== language) {
    await choose(byId("language").value);
    await acts.spoken();
  }
  if (config.wants_key && byId("key").value.trim() !== key()) {
    setKey(byId("key").value.trim());
    acts.keyed();
  }
}
