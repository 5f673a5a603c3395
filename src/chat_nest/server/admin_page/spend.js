// What was spent: a chart and a table for each day, and the callers with the highest cost. Read when it is asked for.

import * as acts from "./acts.js";
import { Failure, read as ask } from "./api.js";
import { drawCaller, expect } from "./board.js";
import { Chart } from "./charts.js";
import { byId, element } from "./dom.js";
import { Table, buttons } from "./tables.js";
import { day } from "./times.js";
import { dollars, number, word } from "./words.js";

const AGAIN_MS = 60_000;
/** @type {any} */
let spend = null;
/** @type {any} */
let callers = null;
/** @type {Chart} */
let chart;
/** @type {Table} */
let table;
/** @type {Table} */
let top;
let controller = new AbortController();
let again = 0;

const unit = () => byId("spend-unit").value;
const sum = (values) => values.reduce((total, each) => total + each, 0);
const shown = (value) => (unit() === "usd" ? dollars(value) : number(value));
const nameOf = ({ name, others }) => (name === null ? word("others", { count: others }) : name || word("none_named"));

/** Make the parts, in the page's language. */
export function start() {
  if (!chart) {
    chart = new Chart(byId("spend-chart"));
    for (const place of ["spend-by", "spend-days", "callers-days"]) byId(place).addEventListener("change", () => read());
    byId("spend-unit").addEventListener("change", draw);
  }
  const share = ({ part }) => `${Math.round(part * 100)} %`;
  table = new Table(byId("spend"), {
    caption: word("spend"),
    none: word("spend.none"),
    key: ({ name }) => String(name),
    columns: [
      { head: word("name"), draw: drawName, kind: "wide" },
      { head: word("requests"), text: ({ requests }) => number(sum(requests)), kind: "number" },
      { head: word("tokens"), text: ({ tokens }) => number(sum(tokens)), kind: "number" },
      { head: word("cost"), text: ({ usd }) => dollars(sum(usd)), kind: "number" },
      { head: word("share"), text: share, kind: "number" },
    ],
  });
  top = new Table(byId("callers"), {
    caption: word("callers"),
    none: word("callers.none"),
    most: 8,
    key: ({ caller, group }) => `${caller} ${group ?? ""}`,
    columns: [
      { head: word("caller"), draw: drawCaller, kind: "code" },
      { head: word("group"), text: ({ group }) => group || "–" },
      { head: word("requests"), text: ({ requests }) => number(requests), kind: "number" },
      { head: word("failed"), text: ({ errors }) => number(errors), kind: "number" },
      { head: word("tokens"), text: ({ tokens }) => number(tokens), kind: "number" },
      { head: word("cost"), text: ({ usd, unpriced, requests }) => (unpriced === requests ? word("unknown") : dollars(usd)), kind: "number" },
      { head: word("acts"), kind: "acts", draw: (cell, row) => buttons(cell, row, [
        { label: word("block"), name: word("block.name", { caller: row.caller }), act: ({ caller }) => acts.block(caller) },
        { label: word("grant"), name: word("grant.name", { what: row.caller }), act: ({ caller }) => acts.grant(`caller:${caller}`) },
      ]) },
    ],
  });
  draw();
}

/** Ask the server, and again each minute while the page is in sight. */
export async function read() {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  clearTimeout(again);
  readForecast(signal);
  try {
    [spend, callers] = await Promise.all([
      ask(`spend?by=${byId("spend-by").value}&days=${byId("spend-days").value}`, signal),
      ask(`callers?days=${byId("callers-days").value}`, signal),
    ]);
    draw();
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof Failure && error.status === 401) return;
    const kept = error instanceof Failure && error.status === 404;
    byId("spend-chart").hidden = kept;
    if (kept) for (const place of ["spend", "callers"]) byId(place).replaceChildren(element("p", { class: "none" }, error.message));
  }
  again = setTimeout(() => (document.hidden ? addEventListener("visibilitychange", () => read(), { once: true }) : read()), AGAIN_MS);
}

/** Ask how much of the limits will be used. @param {AbortSignal} signal */
async function readForecast(signal) {
  const found = await ask("forecast", signal).catch(() => null);
  if (found) expect(found.forecasts);
}

function draw() {
  if (!spend || !callers) return;
  const total = sum(spend.series.map((each) => sum(each[unit()]))) || 1;
  const colours = spend.series.map(({ name }, index) => (name === null ? "--chart-other" : `--chart-${index + 1}`));
  const rows = spend.series.map((each, index) => ({ ...each, colour: colours[index], part: sum(each[unit()]) / total }));
  const unpriced = spend.unpriced ? ` ${word("spend.unpriced", { count: spend.unpriced })}` : "";
  chart.show({
    labels: spend.dates.map(day),
    series: rows.map((each) => ({ name: nameOf(each), colour: each.colour, values: each[unit()] })),
    format: shown,
    describe: word("spend.describe", { total: shown(sum(spend.series.map((each) => sum(each[unit()])))), days: spend.dates.length }),
  });
  byId("spend-chart").hidden = !rows.length;
  table.show(rows);
  let more = byId("spend").querySelector("details");
  if (!more) {
    more = element("details", {}, element("summary", {}), element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": word("spend.by_day") }));
    byId("spend").append(element("p", { class: "what" }), more);
  }
  byId("spend").querySelector("p.what").textContent = unpriced.trim();
  more.hidden = !rows.length;
  more.querySelector("summary").textContent = word("spend.by_day");
  more.querySelector(".scroll").replaceChildren(byDay(rows));
  top.show(callers.callers);
}

function drawName(cell, row) {
  if (!cell.childElementCount) cell.append(element("span", { class: "swatch", "aria-hidden": "true" }), element("span"));
  cell.children[0].style.background = `var(${row.colour})`;
  cell.children[1].textContent = nameOf(row);
}

function byDay(rows) {
  const head = element("tr", {}, element("th", { scope: "col" }, word("day")), ...rows.map((each) => element("th", { scope: "col", class: "number" }, nameOf(each))));
  const days = spend.dates.map((date, index) =>
    element("tr", {}, element("th", { scope: "row" }, day(date)), ...rows.map((each) => element("td", { class: "number" }, shown(each[unit()][index])))));
  return element("table", {}, element("caption", { class: "unseen" }, word("spend.by_day")), element("thead", {}, head), element("tbody", {}, ...days.reverse()));
}
