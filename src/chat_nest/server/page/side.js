// The list of conversations: open, search, rename, export, delete with undo.

import { Conversation } from "./conversation.js";
import { byId, element, iconButton } from "./dom.js";
import { asJson, asMarkdown, fileName, save } from "./exports.js";
import * as store from "./store.js";
import { toast } from "./toast.js";
import { moment, word } from "./words.js";

const narrow = matchMedia("(max-width: 50rem)");

/** @typedef {import("./store.js").Message} Message */
/** @typedef {{open: (id: string) => void, current: () => string, removed: (ids: string[]) => (Message | undefined)[]}} Acts */

/** @type {Acts} */
let acts;
let drawing = 0;

/** @param {Acts} given */
export function start(given) {
  acts = given;
  byId("search").addEventListener("input", draw);
  byId("menu").addEventListener("click", () => setOpen(!document.body.classList.contains("with-side")));
  byId("close-side").addEventListener("click", () => setOpen(false));
  byId("shade").addEventListener("click", () => setOpen(false));
  byId("side").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && narrow.matches && !byId("item-menu").contains(event.target)) setOpen(false);
  });
  narrow.addEventListener("change", () => setOpen(!narrow.matches, false));
  setOpen(!narrow.matches, false);
  return draw();
}

/** @param {boolean} open @param {boolean} [focus] */
export function setOpen(open, focus = true) {
  document.body.classList.toggle("with-side", open);
  byId("side").inert = !open;
  byId("menu").ariaExpanded = String(open);
  byId("shade").hidden = !(open && narrow.matches);
  document.querySelector(".chat").inert = open && narrow.matches;
  if (!focus) return;
  if (open) byId("search").focus();
  else if (byId("side").contains(document.activeElement) || narrow.matches) byId("menu").focus();
}

/** After a choice from the drawer of a small window. */
export function closeDrawer() {
  if (narrow.matches && document.body.classList.contains("with-side")) setOpen(false);
}

/** Show the stored list. */
export async function draw() {
  const mine = (drawing += 1);
  const sought = byId("search").value.trim();
  const [talks, found, keeping] = await Promise.all([store.talks(), sought ? store.search(sought) : null, store.keeping()]);
  if (mine !== drawing) return; // a later one is on its way
  const shown = talks.filter(({ id }) => !found || found.has(id));
  if (!byId("list").querySelector("input")) byId("list").replaceChildren(...shown.map(item));
  let note = `side.${keeping}`;
  if (!shown.length && keeping === "kept") note = sought ? "side.not_found" : "side.none";
  byId("list-note").dataset.word = note;
  byId("list-note").textContent = word(note);
}

/** @param {import("./store.js").Talk} talk */
function item(talk) {
  const title = talk.title || word("side.untitled");
  const isCurrent = talk.id === acts.current();
  const open = element("button", { type: "button", class: "talk", dir: "auto", "aria-current": isCurrent && "true", title: `${title} · ${moment(talk.updated)}`, onclick: () => acts.open(talk.id) }, title);
  const more = iconButton("more", word("item.menu", { title }), () => showMenu(more, talk, row));
  more.setAttribute("aria-haspopup", "menu");
  const row = element("li", { "data-id": talk.id }, open, more);
  return row;
}

function showMenu(button, talk, row) {
  const menu = byId("item-menu");
  const entry = (name, act) =>
    element("button", { type: "button", role: "menuitem", class: "entry", onclick: () => (menu.hidePopover(), act()) }, word(name));
  menu.ariaLabel = button.ariaLabel;
  menu.replaceChildren(
    entry("item.rename", () => rename(talk, row)),
    entry("item.markdown", () => exportMarkdown(talk.id)),
    entry("item.json", () => exportJson([talk.id], talk.title)),
    entry("item.delete", () => remove([talk.id], word("deleted", { title: talk.title || word("side.untitled") }))),
  );
  menu.showPopover();
  const { bottom, left, right } = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  const isRtl = document.documentElement.dir === "rtl";
  menu.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, isRtl ? left : right - width))}px`;
  menu.style.top = `${Math.max(8, Math.min(innerHeight - height - 8, bottom + 4))}px`;
  menu.firstElementChild.focus();
  menu.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      const entries = [...menu.children];
      entries.at((entries.indexOf(document.activeElement) + step) % entries.length).focus();
    } else if (event.key === "Tab") menu.hidePopover();
  };
  menu.ontoggle = ({ newState }) => {
    if (newState === "closed" && (document.activeElement === document.body || menu.contains(document.activeElement))) button.focus();
  };
}

function rename(talk, row) {
  const field = element("input", { class: "rename", maxlength: 120, "aria-label": word("item.rename"), value: talk.title });
  let isOver = false;
  const end = async (keep) => {
    if (isOver) return;
    isOver = true;
    const title = field.value.trim();
    field.remove();
    const snapshot = keep && title ? await store.read(talk.id) : null;
    if (snapshot) await store.write({ ...snapshot.talk, title });
    await draw();
    byId("list").querySelector(`[data-id="${talk.id}"] .talk`)?.focus();
    if (snapshot) store.tell({ kind: "changed", talk: talk.id });
  };
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") end(false);
  });
  field.addEventListener("blur", () => end(true));
  row.replaceChildren(field);
  field.select();
}

async function exportMarkdown(id) {
  const { talk, messages } = await store.read(id);
  save(fileName(talk.title, "md"), asMarkdown(new Conversation(talk, messages)), "text/markdown");
}

/** @param {string[]} ids @param {string} name */
export async function exportJson(ids, name) {
  const snapshots = (await Promise.all(ids.map(store.read))).filter(Boolean);
  save(fileName(name, "json"), await asJson(snapshots), "application/json");
}

/** Delete conversations, with an undo. @param {string[]} ids @param {string} said */
export async function remove(ids, said) {
  const snapshots = (await Promise.all(ids.map(store.remove))).filter(Boolean);
  const shown = acts.removed(ids);
  for (const snapshot of snapshots) snapshot.messages = snapshot.messages.map((stored) => shown.find((message) => message?.id === stored.id) ?? stored);
  await draw();
  toast(said, word("undo"), async () => {
    for (const snapshot of snapshots) await store.restore(snapshot);
    await draw();
    if (snapshots.length === 1) acts.open(snapshots[0].talk.id);
  });
}
