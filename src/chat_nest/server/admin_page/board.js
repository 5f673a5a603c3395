// The live parts of the page: what needs attention, running answers, limits, the last hour, providers, controls, acts.

import * as acts from "./acts.js";
import { serverNow } from "./api.js";
import { Chart } from "./charts.js";
import { byId, element } from "./dom.js";
import { holder } from "./keys.js";
import { Table, buttons, setText } from "./tables.js";
import { hour, quick, since, span, until } from "./times.js";
import { dollars, known, language, moment, number, word } from "./words.js";

/** The last data of each part. @type {Record<string, any>} */
const parts = {};
/** @type {Record<string, Table>} */
let tables = {};
/** @type {Chart} */
let chart;
let ages = 0;
/** What is expected of a limit, by its name. @type {Map<string, any>} */
let forecasts = new Map();

/** Names that an operator may want to write, from what the page knows. */
export const names = {
  provider: () => Object.keys(parts.activity?.providers ?? {}),
  model: () => unique(running().map(({ model }) => model)),
  profile: () => unique(running().map(({ profile }) => profile)),
  group: () => unique([...running().map(({ group }) => group), ...(parts.standing?.limits ?? []).map(({ group }) => group)]),
  caller: () => unique(running().map(({ caller }) => caller)),
};
const unique = (found) => [...new Set(found.filter(Boolean))].sort();
const running = () => parts.running?.running ?? [];

/** Make the parts, in the page's language. */
export function start() {
  const form = (caption, none, key, columns, most = 20) => ({ caption: word(caption), none: word(none), key, columns, most });
  const column = (head, more) => ({ head: word(head), ...more });
  chart ??= new Chart(byId("hour-chart"));
  tables = {
    running: new Table(byId("running"), form("running", "running.none", ({ run }) => run, [
      column("caller", { draw: drawCaller, kind: "code" }),
      column("model", { text: ({ model }) => model }),
      column("profile", { text: ({ profile }) => profile }),
      column("group", { text: ({ group }) => group || "–" }),
      column("runs_for", { draw: (cell, row) => drawAge(cell, row.started_at), kind: "number" }),
      column("acts", { kind: "acts", draw: (cell, row) => buttons(cell, row, [
        { label: word("stop"), name: word("stop.name", { caller: row.caller }), act: acts.stop },
        { label: word("block"), name: word("block.name", { caller: row.caller }), act: ({ caller }) => acts.block(caller) },
      ]) }),
    ])),
    refused: new Table(byId("refused"), form("refused", "refused.none", ({ code, limit, scope }) => `${code} ${limit} ${scope}`, [
      column("why", { text: whyRefused, title: ({ code }) => code }),
      column("requests", { text: ({ requests }) => number(requests), kind: "number" }),
    ])),
    failed: new Table(byId("failed"), form("failed", "failed.none", ({ code }) => code, [
      column("why", { text: ({ code }) => (known(`code.${code}`) ? word(`code.${code}`) : code), title: ({ code }) => code }),
      column("requests", { text: ({ requests }) => number(requests), kind: "number" }),
    ])),
    providers: new Table(byId("providers"), form("providers", "providers.none", ({ name }) => name, [
      column("provider", { text: ({ name }) => name }),
      column("status", { draw: drawStatus, kind: "wide" }),
      column("calls", { text: ({ calls }) => number(calls), kind: "number" }),
      column("failed", { text: failedShare, kind: "number" }),
      column("first.median", { text: (row) => quick(row.first_token_seconds.median), kind: "number" }),
      column("first.p95", { text: (row) => quick(row.first_token_seconds.p95), kind: "number" }),
      column("keys.resting", { text: ({ keys }) => (keys ? word("of", { some: keys.resting, all: keys.count }) : "–"), kind: "number" }),
      column("acts", { kind: "acts", draw: (cell, row) => buttons(cell, row, [row.pause
        ? { label: word("resume"), name: word("resume.name", { what: row.name }), act: ({ pause }) => acts.resume(pause) }
        : { label: word("pause"), name: word("pause.name", { what: row.name }), act: ({ name }) => acts.pause(`provider:${name}`) }]) }),
    ])),
    controls: new Table(byId("controls"), form("controls", "controls.none", ({ kind, name }) => `${kind} ${name}`, [
      column("what", { text: controlText }),
      column("reason", { text: ({ reason }) => reason || "–", kind: "wide" }),
      column("by", { text: ({ by }) => by || "–", kind: "code" }),
      column("until", { text: (row) => until(row.until) }),
      column("acts", { kind: "acts", draw: (cell, row) => buttons(cell, row, [endOf(row)]) }),
    ])),
    processes: new Table(byId("processes"), form("processes", "processes.none", ({ process }) => process, [
      column("process", { text: ({ process }) => process, kind: "code" }),
      column("version", { text: ({ version }) => version }),
      column("runs_for", { text: ({ started_at }) => since(started_at), kind: "number" }),
      column("streams", { text: ({ streams }) => number(streams), kind: "number" }),
    ])),
    audit: new Table(byId("audit"), form("audit", "audit.none", (row) => `${row.at} ${row.act} ${row.target}`, [
      column("when", { text: ({ at }) => moment(at * 1000) }),
      column("act", { draw: drawAct, kind: "wide" }),
      column("reason", { text: ({ reason }) => reason || "–", kind: "wide" }),
      column("by", { text: ({ by }) => by, kind: "code" }),
    ], 8)),
  };
  for (const name of Object.keys(parts)) draw(name);
  clearInterval(ages);
  ages = setInterval(drawAges, 1_000);
}

/** @param {string} name @param {any} data an error has a `code` */
export function show(name, data) {
  if (data.code) parts.problem = { ...parts.problem, [name]: data };
  else {
    parts[name] = data;
    if (parts.problem) delete parts.problem[name];
  }
  draw(name);
}

function draw(name) {
  const { activity, standing, controls, audit } = parts;
  if (name === "running") tables.running.show(running());
  if (name === "standing" && standing) drawLimits(standing.limits);
  if (name === "audit" && audit) tables.audit.show(audit.acts);
  if (name === "activity" && activity) drawActivity(activity);
  if (name === "controls" && controls) tables.controls.show(controlRows());
  if ((name === "controls" || name === "activity") && activity) {
    const pauses = controls?.pauses ?? [];
    tables.providers.show(Object.entries(activity.providers).map(([provider, found]) => ({ name: provider, ...found, pause: pauses.find((each) => each.name === `provider:${provider}`) })));
  }
  drawTiles();
  drawAttention();
}

function drawTiles() {
  const { activity } = parts;
  const total = (name) => activity?.minutes[name].reduce((sum, each) => sum + each, 0) ?? 0;
  const day = (parts.standing?.limits ?? []).find(({ scope, name }) => scope === "all" && name === "usd_per_day");
  const found = [
    ["running", number(running().length)],
    ["answered", number(total("answered"))],
    ["refused", number(total("refused")), total("refused") > 0 && "low"],
    ["failed", number(total("failed")), total("failed") > 0 && "bad"],
    ["queued", number(activity?.queued ?? 0), activity?.queued > 0 && "low"],
    ["unsettled", number(activity?.unsettled ?? 0), activity?.unsettled > 0 && "low"],
    ...(day ? [["today", dollars(day.used)]] : []),
  ];
  const place = byId("tiles");
  if (place.childElementCount !== found.length) place.replaceChildren(...found.map(() => element("div", {}, element("dt"), element("dd"))));
  found.forEach(([name, text, mood], index) => {
    const [label, value] = place.children[index].children;
    setText(label, word(`tile.${name}`));
    setText(value, text);
    value.className = mood || "";
  });
}

/** What an operator should look at first. */
function drawAttention() {
  const { activity, controls, problem } = parts;
  const found = [];
  const add = (text, label, act) => found.push({ text, label, act });
  if (activity?.status === "draining") add(word("attention.draining"));
  if (activity && activity.store.status !== "ok") add(word("attention.store", { advice: activity.store.advice ?? activity.store.status }));
  else for (const each of Object.values(problem ?? {})) add(word("attention.store", { advice: each.error }));
  for (const [name, { status, advice, breaker }] of Object.entries(activity?.providers ?? {})) {
    if (status !== "ok") add(word("attention.provider", { name, advice: advice || status }));
    else if (breaker !== "closed") add(word("attention.breaker", { name }));
  }
  for (const row of controls?.pauses ?? []) {
    add(word("attention.pause", { what: acts.pausedName(row.name), until: untilText(row), reason: row.reason || "–" }), word("resume"), () => acts.resume(row));
  }
  if (activity?.unsettled > 0) add(word("attention.unsettled", { count: activity.unsettled }));
  const list = byId("attention-list");
  const text = JSON.stringify(found);
  byId("attention").hidden = !found.length;
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  const button = ({ text: said, label, act }) => (label ? [element("button", { type: "button", class: "quiet small", "aria-label": `${label}: ${said}`, onclick: act }, label)] : []);
  list.replaceChildren(...found.map((each) => element("li", {}, element("span", {}, each.text), ...button(each))));
}

const untilText = (row) => (row.until ? word("until.at", { when: until(row.until) }) : word("until.open"));

const limitId = ({ scope, group, name }) => `${scope} ${group ?? ""} ${name}`;
const percentOf = (share) => share.toLocaleString(language, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });

function drawLimits(limits) {
  const place = byId("limits");
  const kept = new Map([...place.children].map((node) => [node.dataset.limit, node]));
  const nodes = limits.map((limit) => {
    const node = kept.get(limitId(limit)) ?? makeLimit(limitId(limit));
    drawLimit(node, limit);
    return node;
  });
  if (nodes.length !== place.children.length || nodes.some((node, index) => node !== place.children[index])) place.replaceChildren(...nodes);
  if (!limits.length) place.replaceChildren(element("li", { class: "none" }, word("limits.none")));
}

function makeLimit(id) {
  const meter = element("div", { class: "meter", role: "meter" }, element("span", { class: "used" }), element("span", { class: "held" }));
  return element("li", { "data-limit": id },
    element("div", { class: "limit-head" }, element("strong"), element("span", { class: "limit-amount" })), meter,
    element("p", { class: "limit-foot" }), element("div", { class: "limit-acts" }));
}

function drawLimit(node, limit) {
  const [head, meter, foot, row] = node.children;
  const share = limit.limit > 0 ? limit.used / limit.limit : 1;
  const held = limit.limit > 0 ? limit.held / limit.limit : 0;
  const owner = limit.group ? word("scope.group", { name: limit.group }) : word("scope.all");
  const name = `${owner}: ${acts.limitName(limit.name)}`;
  setText(head.children[0], name);
  setText(head.children[1], word("limit.used", { used: acts.amountOf(limit.used, limit.unit), limit: acts.amountOf(limit.limit, limit.unit), percent: percentOf(share) }));
  meter.className = `meter${share >= 1 ? " full" : share >= 0.8 ? " low" : ""}`;
  meter.ariaLabel = name;
  meter.setAttribute("aria-valuemin", "0");
  meter.setAttribute("aria-valuemax", "100");
  meter.setAttribute("aria-valuenow", String(Math.min(100, Math.round(share * 100))));
  meter.setAttribute("aria-valuetext", head.children[1].textContent);
  meter.children[0].style.inlineSize = `${Math.min(100, share * 100)}%`;
  meter.children[1].style.inlineSize = `${Math.max(0, Math.min(100 - share * 100, held * 100))}%`;
  const said = [limit.held ? word("limit.held", { held: acts.amountOf(limit.held, limit.unit) }) : "", limit.resets_at && limit.used + limit.held > 0 && limit.name.includes("_per_") ? word("limit.resets", { when: moment(limit.resets_at * 1000) }) : "", forecastText(limit)];
  setText(foot, said.filter(Boolean).join(" · "));
  const window = limit.name.split("_per_")[1];
  if (!["hour", "day", "month"].includes(window)) return;
  const of = limit.group ? `group:${limit.group}` : "all";
  buttons(row, limit, [
    { label: word("grant"), name: word("grant.name", { what: name }), act: () => acts.grant(of, limit.name) },
    { label: word("reset"), name: word("reset.name", { what: name }), act: () => acts.reset(of, limit.name) },
  ]);
}

/** @param {any} limit */
function forecastText(limit) {
  const found = forecasts.get(limitId(limit));
  if (!found || found.expected === null || !limit.limit) return "";
  if (found.full_at !== null) return found.used < found.limit ? word("limit.forecast", { when: moment(found.full_at * 1000) }) : "";
  return word("limit.expected", { percent: percentOf(found.expected / limit.limit) });
}

/** Take what the server expects of the limits. @param {any[]} found */
export function expect(found) {
  forecasts = new Map(found.map((each) => [limitId(each), each]));
  draw("standing");
}

function drawActivity(activity) {
  const { since: first, answered, refused, failed } = activity.minutes;
  const total = (values) => number(values.reduce((sum, each) => sum + each, 0));
  chart.show({
    labels: answered.map((_, index) => hour(first + index * 60)),
    series: [
      { name: word("answered"), colour: "--accent", values: answered },
      { name: word("refused"), colour: "--low", values: refused },
      { name: word("failed"), colour: "--bad", values: failed },
    ],
    format: number,
    legend: true,
    describe: word("hour.describe", { answered: total(answered), refused: total(refused), failed: total(failed) }),
  });
  tables.refused.show(activity.refused);
  tables.failed.show(activity.failed);
  tables.processes.show(activity.processes);
  const { store } = activity;
  const facts = [
    ["store", `${store.place}${store.status === "ok" ? "" : `: ${store.status}`}`],
    ["journal", activity.unsettled ? word("journal.open", { count: activity.unsettled }) : word("journal.none")],
    ["queue", word("queue.waiting", { count: activity.queued })],
    ["expired", number(activity.expired)],
    ["version", activity.version],
    ["time_zone", activity.time_zone],
  ];
  const text = JSON.stringify(facts);
  const place = byId("server");
  if (place.dataset.shown === text) return;
  place.dataset.shown = text;
  place.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, word(`fact.${name}`)), element("dd", {}, value)]));
}

const whyRefused = ({ code, limit, scope }) => {
  if (limit) return word("why.limit", { limit: acts.limitName(limit), scope: known(`of.${scope}`) ? word(`of.${scope}`) : scope });
  return known(`code.${code}`) ? word(`code.${code}`) : code;
};

const failedShare = ({ calls, failed }) => (calls ? `${number(failed)} (${Math.round((failed / calls) * 100)} %)` : "–");

function drawStatus(cell, { status, advice, breaker, pause }) {
  const [mood, text] = pause
    ? ["low", word("provider.paused", { until: untilText(pause) })]
    : status !== "ok" ? ["bad", advice || status]
    : breaker !== "closed" ? ["bad", word(`breaker.${breaker}`)]
    : advice ? ["low", advice] : ["good", word("provider.ok")];
  cell.dataset.mood = mood;
  setText(cell, text);
}

const controlRows = () => [
  ...parts.controls.pauses.map((row) => ({ ...row, act: "pause" })),
  ...parts.controls.blocks.map((row) => ({ ...row, act: "block" })),
  ...parts.controls.grants.map((row) => ({ ...row, act: "grant" })),
];

function controlText(row) {
  if (row.act !== "grant") return word(`control.${row.act}`, { what: row.act === "pause" ? acts.pausedName(row.name) : acts.scopeName(row.name) }) + (row.stop_running ? word("control.stops") : "");
  const amount = `${acts.amountOf(row.amount ?? 0, row.unit)}${row.unit === "usd" ? "" : ` ${word(`unit.${row.unit}`)}`}`;
  return word(`control.${row.kind ?? "grant"}`, { what: acts.scopeName(row.owner ?? row.name), amount, limit: acts.limitName(row.limit ?? "") });
}

function endOf(row) {
  const what = acts.scopeName(row.name);
  if (row.act === "pause") return { label: word("resume"), name: word("resume.name", { what: acts.pausedName(row.name) }), act: acts.resume };
  if (row.act === "block") return { label: word("unblock"), name: word("unblock.name", { what }), act: acts.unblock };
  return { label: word("withdraw"), name: word("withdraw.name", { what: acts.scopeName(row.owner ?? row.name) }), act: acts.withdraw };
}

function drawAct(cell, { act, target, detail }) {
  if (!cell.childElementCount) cell.append(element("span"), element("small"));
  const what = act === "stop" ? target : act === "pause" || act === "resume" ? acts.pausedName(target) : acts.scopeName(target);
  setText(cell.children[0], known(`did.${act}`) ? word(`did.${act}`, { what }) : `${act} ${target}`);
  setText(cell.children[1], detail);
}

/** A caller as the records have it, and the name of its key's holder if it has one. */
export function drawCaller(cell, { caller }) {
  if (!cell.childElementCount) cell.append(element("span"), element("small"));
  setText(cell.children[0], caller);
  setText(cell.children[1], holder(caller));
}

function drawAge(cell, started) {
  cell.dataset.started = String(started);
  setText(cell, since(started));
}

function drawAges() {
  for (const cell of byId("running").querySelectorAll("[data-started]")) setText(cell, span(serverNow() / 1000 - Number(cell.dataset.started)));
}
