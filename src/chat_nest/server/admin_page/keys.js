// The keys of callers, if the server issues some.

import * as acts from "./acts.js";
import { read as ask } from "./api.js";
import { byId } from "./dom.js";
import { Table, buttons } from "./tables.js";
import { moment, word } from "./words.js";

const AGAIN_MS = 60_000;
const NOT_IN_FORCE = new Set(["revoked", "expired"]);

/** @type {any[] | null} */
let keys = null;
/** @type {Table} */
let table;
let again = 0;

/** The name of a caller, if it is the holder of a key. @param {string} caller as the records have it */
export const holder = (caller) => keys?.find(({ in_usage }) => in_usage === caller)?.caller ?? "";

/** Make the table, in the page's language. */
export function start() {
  table = new Table(byId("keys"), {
    caption: word("keys"),
    none: word("keys.none"),
    key: ({ id }) => id,
    most: 20,
    columns: [
      { head: word("key.id"), text: ({ id }) => id, kind: "code" },
      { head: word("name"), text: ({ name }) => name || "–" },
      { head: word("caller"), text: ({ caller }) => caller },
      { head: word("group"), text: ({ group }) => group || "–" },
      { head: word("key.scopes"), text: ({ scopes, profiles }) => [...(scopes ?? []), ...(profiles ?? [])].join(", ") || "–" },
      { head: word("key.expires"), text: ({ expires }) => (expires ? moment(expires * 1000) : "–") },
      { head: word("acts"), kind: "acts", draw: drawActs },
    ],
  });
  draw();
}

function drawActs(cell, row) {
  const state = row.revoked ? "revoked" : row.state;
  if (NOT_IN_FORCE.has(state)) cell.textContent = word(`key.${state}`);
  else buttons(cell, row, [{ label: word("revoke"), name: word("revoke.name", { what: row.name || row.id }), act: (each) => acts.revoke(each, read) }]);
}

/** Ask the server, and again each minute while the page is in sight. */
export async function read() {
  clearTimeout(again);
  const found = await ask("keys").catch(() => null);
  keys = found && found.kept_in !== null ? found.keys : null;
  draw();
  if (keys) again = setTimeout(() => (document.hidden ? addEventListener("visibilitychange", () => read(), { once: true }) : read()), AGAIN_MS);
}

function draw() {
  byId("keys-card").hidden = !keys;
  if (keys) table.show(keys);
}
