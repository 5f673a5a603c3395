// The cost of an answer, and what is left: GET /api/usage. The page shows the limit that runs out first.

import { byId } from "./dom.js";
import { ask } from "./run.js";
import { dollars, moment, number, word } from "./words.js";

/** @typedef {{name: string, unit: string, limit: number, used: number, held: number, remaining: number, resets_at: number | null}} Limit */

/** Below this share of a limit, what is left is marked as low. */
const LITTLE = 0.1;

/** @param {string} unit @param {number} value */
export function amount(unit, value) {
  if (unit === "usd") return dollars(value);
  return word(unit === "requests" ? "unit.requests" : "unit.tokens", { count: value });
}

const windowOf = ({ name }) => name.split("_").at(-1);

/** @param {Limit[]} limits @returns {Limit | undefined} the one of which the smallest share is left */
export function scarcest(limits) {
  const shown = limits.filter((limit) => limit.limit > 0 && ["hour", "day", "month"].includes(windowOf(limit)));
  return shown.sort((one, other) => one.remaining / one.limit - other.remaining / other.limit)[0];
}

let reading = 0;
/** The name of the chosen profile, where there is a choice. @type {(() => string) | null} */
let profiles = null;

/** @param {() => string} chosen */
export const start = (chosen) => void (profiles = chosen);

/** Read and show what is left. @returns {Promise<boolean>} whether it could be read: the chat works without it */
export async function readUsage() {
  const mine = (reading += 1);
  const profile = profiles ? `?profile=${encodeURIComponent(profiles())}` : "";
  try {
    const response = await ask(`api/usage${profile}`);
    const { limits } = await response.json();
    if (mine !== reading) return true; // of another profile, perhaps
    day = limits.find(({ name }) => name === "tokens_per_day");
    show(scarcest(limits));
    return true;
  } catch {
    show(undefined);
    return false;
  }
}

/** @param {Limit | undefined} limit */
function show(limit) {
  const line = byId("left");
  line.hidden = !limit;
  if (!limit) return;
  const isDollars = limit.unit === "usd";
  const values = {
    left: isDollars ? dollars(limit.remaining) : number(limit.remaining),
    limit: amount(limit.unit, limit.limit),
    window: word(`window.${windowOf(limit)}`),
  };
  line.classList.toggle("low", limit.remaining < limit.limit * LITTLE);
  byId("meter").max = limit.limit;
  byId("meter").value = limit.remaining;
  byId("left-text").textContent = word("left", values);
  line.title = limit.resets_at ? word("left.resets", { when: moment(limit.resets_at * 1000) }) : "";
}

/** @param {any} costs the data of `done` @returns {string} the line under an answer */
export function costLine({ usage, cost_usd: cost, source, finish_reason: reason }) {
  const parts = [];
  if (usage) {
    const { total_tokens: count, input_tokens: input, output_tokens: output } = usage;
    parts.push(word("cost.tokens", { count, input, output }));
    if (source === "estimated" || source === "assumed") parts.push(word(`cost.${source}`));
  }
  if (cost) parts.push(dollars(cost));
  if (reason === "length" || reason === "content_filter") parts.push(word(`cut.${reason}`));
  return parts.join(" · ");
}

/** @type {Limit | undefined} */
let day;

/** @returns {Limit | undefined} the day's tokens, as they were last read */
export const dayOfTokens = () => day;
