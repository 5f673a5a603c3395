// Spans and moments, in words.

import { serverNow } from "./api.js";
import { language, moment, word } from "./words.js";

/** @param {number} seconds @returns {string} such as 45 s, 3:20 min, 2 h 5 min, 3 d */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return word("span.s", { s: whole });
  if (whole < 3_600) return word("span.min", { min: Math.floor(whole / 60), s: String(whole % 60).padStart(2, "0") });
  if (whole < 172_800) return word("span.h", { h: Math.floor(whole / 3_600), min: Math.floor((whole % 3_600) / 60) });
  return word("span.d", { d: Math.round(whole / 86_400) });
}

/** @param {number} seconds since 1970 @returns {string} */
export const since = (seconds) => span(serverNow() / 1000 - seconds);

/** @param {number | null} seconds since 1970 @returns {string} */
export const until = (seconds) => (seconds ? moment(seconds * 1000) : word("until.ended"));

/** @param {number | null} seconds @returns {string} a short time, to two digits */
export const quick = (seconds) =>
  seconds === null ? "–" : `${seconds.toLocaleString(language, { maximumSignificantDigits: 2 })} s`;

/** @param {string} date 2026-11-30 @returns {string} */
export const day = (date) =>
  new Date(`${date}T12:00:00Z`).toLocaleDateString(language, { day: "numeric", month: "short", timeZone: "UTC" });

/** @param {number} seconds since 1970 @returns {string} */
export const hour = (seconds) => new Date(seconds * 1000).toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit" });
