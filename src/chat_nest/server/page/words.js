// A page's words in the visitor's language, from words/LANGUAGE.json. English is in the page itself, and replaces
// missing texts of a file.

import { byId } from "./dom.js";

/** The server's configuration in the page: see page_settings.py. */
export const config = JSON.parse(byId("config").textContent);
const CHOSEN = "chat-nest-language";
const RIGHT_TO_LEFT = new Set(["ar", "fa", "he", "ur"]);

/** @type {Record<string, string | Record<string, string>>} */
let words = config.words;
/** Each takes a browser long to make: once for a language. @type {Intl.PluralRules | null} */
let plurals = null;
/** @type {Intl.NumberFormat | null} */
let numbers = null;

/** The language that the page is shown in. */
export let language = "en";

/** @returns {string} the visitor's choice, else the operator's, else the best of the browser's */
function wanted() {
  const asked = [remembered(), config.language, ...navigator.languages].filter(Boolean);
  for (const tag of asked) {
    const found = [tag, tag.split("-")[0]].find((each) => config.languages.includes(each));
    if (found) return found;
  }
  return "en";
}

function remembered() {
  try {
    return localStorage.getItem(CHOSEN) ?? "";
  } catch {
    return ""; // storage is forbidden, as in some frames
  }
}

/** @param {string} tag */
export function choose(tag) {
  try {
    localStorage.setItem(CHOSEN, tag);
  } catch {
    // It lasts until the page is closed.
  }
  return load(tag);
}

/** Load the texts, and put them into the page. */
export async function load(tag = wanted()) {
  if (tag !== "en") {
    const response = await fetch(`words/${tag}.json`).catch(() => null);
    if (!response?.ok) tag = "en";
    else words = { ...config.words, ...(await response.json()) };
  }
  if (tag === "en") words = config.words;
  language = tag;
  plurals = numbers = null;
  document.documentElement.lang = tag;
  document.documentElement.dir = RIGHT_TO_LEFT.has(tag.split("-")[0]) ? "rtl" : "ltr";
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = word(node.dataset.word);
  for (const node of document.querySelectorAll("[data-label]")) node.ariaLabel = word(node.dataset.label);
  for (const node of document.querySelectorAll("button[data-label]")) node.title = node.ariaLabel;
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = word(node.dataset.placeholder);
}

/** @param {string} name @returns {boolean} */
export const known = (name) => name in words;

/**
 * @param {string} name a key of the words' file
 * @param {Record<string, string | number>} [values] the values for {name}; `count` chooses among plural forms
 * @returns {string}
 */
export function word(name, values = {}) {
  const found = words[name] ?? config.words[name] ?? name;
  const form = typeof found === "string" ? found : (found[formOf(Number(values.count))] ?? found.other);
  return form.replace(/\{(\w+)\}/g, (all, key) => {
    const value = values[key];
    return value === undefined ? all : typeof value === "number" ? number(value) : value;
  });
}

/** @param {number} count @returns {string} the name of its plural form */
const formOf = (count) => (plurals ??= new Intl.PluralRules(language)).select(count);

/** A language's name in that language. @param {string} tag */
export function languageName(tag) {
  const name = new Intl.DisplayNames([tag], { type: "language" }).of(tag) ?? tag;
  return name[0].toLocaleUpperCase(tag) + name.slice(1);
}

/** @param {number} value */
export const number = (value) => (numbers ??= new Intl.NumberFormat(language)).format(value);

/** @param {number} value dollars, to two significant digits below one cent @returns {string} in Arabic, too, as "$0.5": "US$" would be shown as "$US" */
export function dollars(value) {
  const isRtl = document.documentElement.dir === "rtl";
  const text = new Intl.NumberFormat(language === "en" || isRtl ? "en-US" : language, {
    style: "currency",
    currency: "USD",
    ...(value && value < 1 ? { maximumSignificantDigits: 2 } : { maximumFractionDigits: 2 }),
  }).format(value);
  return isRtl ? `\u2066${text}\u2069` : text;
}

/** @param {number} milliseconds since 1970 @returns {string} an hour of today, else a day too */
export function moment(milliseconds) {
  const when = new Date(milliseconds);
  const isToday = when.toDateString() === new Date().toDateString();
  const hour = { hour: "2-digit", minute: "2-digit" };
  const isNear = Math.abs(milliseconds - Date.now()) < 6 * 86_400_000;
  const day = isNear ? { weekday: "long" } : { day: "numeric", month: "long" };
  return when.toLocaleString(language, isToday ? hour : { ...day, ...hour });
}
