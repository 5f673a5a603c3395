// Error messages for visitors, and what they can do.

import { amount } from "./money.js";
import { known, language, moment, word } from "./words.js";

/** The text returns to the box, to be changed. */
const EDIT = new Set(["request_too_large", "bad_request", "images_not_supported", "image_unreadable", "body_too_large", "context_length_exceeded", "content_filtered"]);
/** A retry would not help. */
const FINAL = new Set(["unauthorized", "forbidden", "closed", "blocked", "origin_not_allowed", "host_not_allowed", "upstream_auth", "upstream_quota"]);
const SAME = {
  upstream_idle: "slow",
  upstream_timeout: "slow",
  deadline_exceeded: "slow",
  upstream_rate_limited: "upstream_overloaded",
  upstream_incomplete: "upstream_ended",
  upstream_truncated: "upstream_ended",
  host_not_allowed: "origin_not_allowed",
  challenge_required: "challenge_failed",
};

/**
 * What to show of a failure. `then` is what the visitor can do: change the message, try again after `seconds`, enter a
 * key, or nothing.
 * @param {import("./run.js").Failure} failure
 * @returns {{text: string, then: "edit" | "retry" | "key" | "nothing", seconds: number}}
 */
export function explain({ message, fields }) {
  const { code, retry_after: seconds = 0 } = fields;
  const isLimit = code === "budget_exceeded" || (code === "rate_limited" && !/minute/.test(fields.limit ?? ""));
  const text = isLimit && fields.limit ? limitText(fields) : codeText(code, message, fields);
  const isLater = seconds > 600;
  const again = isLater ? word("again_at", { when: moment(Date.now() + seconds * 1000) }) : "";
  let then = /** @type {"edit" | "retry" | "key" | "nothing"} */ ("retry");
  if (code === "unauthorized") then = "key";
  else if (EDIT.has(code) || fields.needed) then = "edit";
  else if (isLater || FINAL.has(code) || (code === "budget_exceeded" && !seconds)) then = "nothing";
  return { text: [text, again].filter(Boolean).join(" "), then, seconds };
}

function codeText(code, message, fields) {
  const name = `error.${SAME[code] ?? code}`;
  if (code === "bad_request" && fields.field) return `${word(name)} (${fields.field}: ${fields.detail})`;
  if (known(name)) return word(name);
  const isForeign = code.startsWith("upstream_") && (language !== "en" || !message); // the server's own words are English
  const said = isForeign ? word("error.upstream") : message || word("error.server", { status: fields.status ?? "" });
  return /[.!?]$/.test(said) ? said : `${said}.`;
}

/** The budget that is spent, its scope, and whether a shorter message would fit. */
function limitText({ limit, scope = "caller", remaining, needed }) {
  const [unit] = limit.split("_");
  const window = limit.split("_").at(-1);
  const left = (value) => amount(unit, value);
  if (needed) return word("limit.low", { left: left(remaining), needed: left(needed) });
  const nearly = remaining ? word("limit.nearly") : "";
  const text = word(`limit.${scope}`, { unit: word(`limit.${unit}`), window: word(`window.${window}`), nearly });
  return remaining ? `${text} ${word("limit.rest", { left: left(remaining) })}` : text;
}
