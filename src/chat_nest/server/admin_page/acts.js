// What operators do: each act has a dialog that says what will happen, a reason, and an undo where there is one.

import { post, serverNow } from "./api.js";
import { byId, element } from "./dom.js";
import { toast } from "./toast.js";
import { dollars, known, moment, number, word } from "./words.js";

/** Names for the fields of the dialogs. @type {Record<string, () => string[]>} */
let names = { provider: () => [], model: () => [], profile: () => [], group: () => [], caller: () => [] };

/** @param {typeof names} given */
export const offer = (given) => void (names = given);

const SPANS = { "": 0, "15m": 900, "1h": 3_600, "4h": 14_400, "24h": 86_400, "7d": 604_800 };
const FOR = { name: "for", label: "field.for", options: () => Object.keys(SPANS).map((each) => [each, word(`for.${each || "open"}`)]) };
const STOP = { name: "stop_running", label: "field.stop_running", check: true };
const WHOLE = new Set(["hour", "day", "month"]);

/** The name of a row, such as `provider:openai`, as words. @param {string} name */
export function scopeName(name) {
  if (name === "all") return word("scope.all");
  const [scope, ...rest] = name.split(":");
  return known(`scope.${scope}`) ? word(`scope.${scope}`, { name: rest.join(":") }) : name;
}

/** What a pause pauses, as words. @param {string} name of its row */
export const pausedName = (name) => (name === "all" ? word("pause.all") : scopeName(name));

/** A limit's name as words. @param {string} name such as tokens_per_day */
export function limitName(name) {
  const [unit, , window] = name.split("_");
  return known(`unit.${unit}`) && known(`per.${window}`) ? word("limit", { unit: word(`unit.${unit}`), per: word(`per.${window}`) }) : name;
}

/** @param {number} amount @param {string} unit */
export const amountOf = (amount, unit) => (unit === "usd" ? dollars(amount) : number(amount));

const scopeBody = (name) => {
  if (name === "all") return { all: true };
  const [scope, ...rest] = name.split(":");
  return { [scope === "network" ? "address" : scope]: rest.join(":") };
};

const untilText = (values) => (values.for ? word("until.at", { when: moment(serverNow() + SPANS[values.for] * 1000) }) : word("until.open"));
const stopText = (values) => (values.stop_running ? word("stops_running") : word("goes_on"));
/** What is left of a row's time, as the API has it. @param {{until: number | null}} row */
const rest = ({ until }) => (until ? { for: `${Math.max(1, Math.min(999_999, Math.round(until - serverNow() / 1000)))}s` } : {});
const undone = (act) => ({ reason: word("undone", { act }) });

/** @param {string} name of a pause */
export const pause = (name) => confirmPause(() => name, [FOR, STOP]);

/** Ask what to pause. */
export function pauseAny() {
  const scopes = ["all", "provider", "model", "profile", "group", "caller"];
  const scope = { name: "scope", label: "field.scope", options: () => scopes.map((each) => [each, word(`pause.${each}`)]) };
  const name = { name: "name", label: "field.name", text: true, list: ({ scope: of }) => names[of]?.() ?? [], when: ({ scope: of }) => of !== "all" };
  confirmPause((values) => (values.scope === "all" ? "all" : `${values.scope}:${values.name.trim()}`), [scope, name, FOR, STOP]);
}

function confirmPause(nameOf, fields) {
  confirm({
    title: (values) => word("pause.title", { what: pausedName(nameOf(values)) }),
    what: (values) => [
      word("pause.what", { what: scopeName(nameOf(values)), until: untilText(values) }),
      /^(provider|model):/.test(nameOf(values)) ? word("pause.fallbacks") : "",
      stopText(values),
    ].filter(Boolean).join(" "),
    go: word("pause.go"),
    fields,
    run: async (values, reason) => {
      const body = scopeBody(nameOf(values));
      const row = await post("pause", { ...body, reason, stop_running: values.stop_running, ...(values.for && { for: values.for }) });
      return { said: word("paused", { what: pausedName(row.name) }), undo: () => post("resume", { ...body, ...undone("pause") }) };
    },
  });
}

/** @param {{name: string, reason: string, until: number | null, stop_running: boolean}} row */
export function resume(row) {
  const what = pausedName(row.name);
  confirm({
    title: () => word("resume.title", { what }),
    what: () => word("resume.what", { what: scopeName(row.name) }),
    go: word("resume.go"),
    run: async (_, reason) => {
      await post("resume", { ...scopeBody(row.name), reason });
      return {
        said: word("resumed", { what }),
        undo: () => post("pause", { ...scopeBody(row.name), ...rest(row), stop_running: row.stop_running, reason: row.reason }),
      };
    },
  });
}

/** @param {string} [caller] */
export function block(caller) {
  const fields = [
    { name: "kind", label: "field.scope", options: () => [["caller", word("pause.caller")], ["address", word("block.address")]] },
    { name: "name", label: "field.who", text: true, list: ({ kind }) => (kind === "caller" ? names.caller() : []), hint: ({ kind }) => word(`hint.${kind}`) },
  ];
  const nameOf = (values) => (caller ? `caller:${caller}` : `${values.kind === "address" ? "network" : "caller"}:${values.name.trim()}`);
  confirm({
    title: (values) => word("block.title", { what: scopeName(nameOf(values)) }),
    what: (values) => word("block.what", { what: scopeName(nameOf(values)), until: untilText(values), running: stopText(values) }),
    go: word("block.go"),
    fields: [...(caller ? [] : fields), FOR, STOP],
    run: async (values, reason) => {
      const body = scopeBody(nameOf(values));
      const row = await post("block", { ...body, reason, stop_running: values.stop_running, ...(values.for && { for: values.for }) });
      return { said: word("blocked", { what: scopeName(row.name) }), undo: () => post("unblock", { ...body, ...undone("block") }) };
    },
  });
}

/** @param {{name: string, reason: string, until: number | null, stop_running: boolean}} row */
export function unblock(row) {
  const what = scopeName(row.name);
  confirm({
    title: () => word("unblock.title", { what }),
    what: () => word("unblock.what", { what }),
    go: word("unblock.go"),
    run: async (_, reason) => {
      await post("unblock", { ...scopeBody(row.name), reason });
      return {
        said: word("unblocked", { what }),
        undo: () => post("block", { ...scopeBody(row.name), ...rest(row), stop_running: row.stop_running, reason: row.reason }),
      };
    },
  });
}

/** @param {{run: string, caller: string, model: string}} row */
export function stop(row) {
  confirm({
    title: () => word("stop.title"),
    what: () => word("stop.what", { caller: row.caller, model: row.model }),
    go: word("stop.go"),
    run: async (_, reason) => {
      const { stopped } = await post(`running/${row.run}/stop`, { reason });
      return { said: word(stopped ? "stopped" : "stopping") };
    },
  });
}

const OWNER = [
  { name: "owner", label: "field.owner", options: () => ["all", "group", "caller"].map((each) => [each, word(`owner.${each}`)]) },
  { name: "name", label: "field.name", text: true, list: ({ owner }) => names[owner]?.() ?? [], when: ({ owner }) => owner !== "all", hint: ({ owner }) => (owner === "caller" ? word("hint.caller") : "") },
];
const ownerOf = (owner, values) => owner ?? (values.owner === "all" ? "all" : `${values.owner}:${values.name.trim()}`);

/** @param {string} [owner] such as `group:staff` @param {string} [limit] such as `tokens_per_day` */
export function grant(owner, limit) {
  const [unit, , per] = limit?.split("_") ?? [];
  const fields = [
    ...(owner ? [] : OWNER),
    { name: "amount", label: "field.amount", number: true },
    { name: "unit", label: "field.unit", value: unit, options: () => ["tokens", "requests", "usd"].map((each) => [each, word(`unit.${each}`)]) },
    { name: "per", label: "field.per", value: per ?? "day", options: () => [...WHOLE].map((each) => [each, word(`window.${each}`)]) },
  ];
  const amount = (values) => `${amountOf(Number(values.amount) || 0, values.unit)}${values.unit === "usd" ? "" : ` ${word(`unit.${values.unit}`)}`}`;
  confirm({
    title: (values) => word("grant.title", { what: scopeName(ownerOf(owner, values)) }),
    what: (values) => word("grant.what", { what: scopeName(ownerOf(owner, values)), amount: amount(values), window: word(`window.${values.per}`) }),
    go: word("grant.go"),
    fields,
    run: async (values, reason) => {
      const body = { ...scopeBody(ownerOf(owner, values)), [values.unit]: Number(values.amount), per: values.per, reason };
      const { name } = await post("grant", body);
      return { said: word("granted", { amount: amount(values) }), undo: () => post("withdraw", { name, ...undone("grant") }) };
    },
  });
}

/** @param {string} [owner] @param {string} [limit] */
export function reset(owner, limit) {
  confirm({
    title: (values) => word("reset.title", { what: scopeName(ownerOf(owner, values)) }),
    what: (values) => word(limit ? "reset.what.one" : "reset.what", { what: scopeName(ownerOf(owner, values)), limit: limit ? limitName(limit) : "" }),
    go: word("reset.go"),
    fields: owner ? [] : OWNER,
    run: async (values, reason) => {
      const found = await post("reset", { ...scopeBody(ownerOf(owner, values)), ...(limit && { limit }), reason });
      if (!found.names.length) return { said: word("reset.nothing") };
      return { said: word("was_reset", { count: found.names.length }), undo: () => Promise.all(found.names.map((name) => post("withdraw", { name, ...undone("reset") }))) };
    },
  });
}

/** @param {{name: string, kind: string, limit: string, owner: string}} row */
export function withdraw(row) {
  confirm({
    title: () => word("withdraw.title"),
    what: () => word("withdraw.what", { what: scopeName(row.owner), limit: limitName(row.limit) }),
    go: word("withdraw.go"),
    run: async (_, reason) => {
      await post("withdraw", { name: row.name, reason });
      return { said: word("withdrawn") };
    },
  });
}

export function reload() {
  confirm({
    title: () => word("reload.title"),
    what: () => word("reload.what"),
    go: word("reload.go"),
    run: async (_, reason) => {
      const { changed = [], kept = [] } = await post("reload", { reason });
      const said = changed.length ? word("reloaded", { what: changed.join(", ") }) : word("reloaded.same");
      return { said: kept.length ? `${said} ${word("reloaded.kept", { what: kept.join(", ") })}` : said };
    },
  });
}

/** @param {{id: string, name?: string}} row @param {() => void} done */
export function revoke(row, done) {
  confirm({
    title: () => word("revoke.title", { what: row.name || row.id }),
    what: () => word("revoke.what"),
    go: word("revoke.go"),
    run: async (_, reason) => {
      await post(`keys/${encodeURIComponent(row.id)}`, { reason }, "DELETE");
      done();
      return { said: word("revoked", { what: row.name || row.id }) };
    },
  });
}

/**
 * @param {{title: (values: any) => string, what: (values: any) => string, go: string, fields?: any[],
 *   run: (values: any, reason: string) => Promise<{said: string, undo?: () => Promise<any>}>}} act
 */
function confirm({ title, what, go, fields = [], run }) {
  const [dialog, form, reason, problem] = ["act", "act-form", "act-reason", "act-problem"].map(byId);
  const parts = fields.map(field);
  const values = () => Object.fromEntries(parts.map(({ name, get }) => [name, get()]));
  const draw = () => {
    const now = values();
    for (const part of parts) part.draw(now);
    byId("act-title").textContent = title(now);
    byId("act-what").textContent = what(now);
  };
  byId("act-fields").replaceChildren(...parts.map(({ node }) => node));
  byId("act-go").textContent = go;
  reason.value = "";
  problem.hidden = true;
  const busy = (is) => {
    byId("act-go").disabled = is;
    form.ariaBusy = String(is);
  };
  busy(false);
  form.oninput = draw;
  form.onsubmit = async (event) => {
    event.preventDefault();
    problem.hidden = true;
    busy(true);
    try {
      const { said, undo } = await run(values(), reason.value.trim());
      dialog.close();
      toast(said, undo && word("undo"), undo && (() => undo().then(() => toast(word("undo.done")), (error) => toast(error.message))));
    } catch (error) {
      problem.textContent = error.problems?.length ? error.problems.join("\n") : error.message;
      problem.hidden = false;
    } finally {
      busy(false);
    }
  };
  byId("act-cancel").onclick = () => dialog.close();
  draw();
  const opener = /** @type {HTMLElement} */ (document.activeElement);
  const card = opener.closest("section");
  // Its row may end while the dialog is open: then the focus has nowhere to return to.
  dialog.onclose = () => opener.isConnected || card?.querySelector("h2")?.focus();
  dialog.showModal();
  (parts.find(({ node }) => !node.hidden)?.input ?? reason).focus();
}

let made = 0;

/** One field of a dialog: a choice, a text with proposals, a number, or a box to check. */
function field({ name, label, options, text, number: isNumber, check, value, list, hint, when }) {
  const id = `act-field-${(made += 1)}`;
  const small = element("small", { id: `${id}-hint`, hidden: true });
  const proposals = element("datalist", { id: `${id}-list` });
  let input;
  if (options) input = element("select", { id }, ...options().map(([each, shown]) => element("option", { value: each, selected: each === value }, shown)));
  else if (check) input = element("input", { id, type: "checkbox" });
  else if (isNumber) input = element("input", { id, type: "number", min: "0", step: "any", required: true, inputmode: "decimal" });
  else input = element("input", { id, autocomplete: "off", spellcheck: "false", required: true, list: `${id}-list`, "aria-describedby": `${id}-hint` });
  const named = element("label", { for: id }, word(label));
  const node = check ? element("p", { class: "check" }, input, named) : element("p", {}, named, input, ...(text ? [proposals, small] : []));
  let proposed = "";
  return {
    name,
    node,
    input,
    get: () => (check ? input.checked : input.value),
    draw(values) {
      const shown = when ? when(values) : true;
      node.hidden = !shown;
      if (!check && !options) input.required = shown;
      if (!text) return;
      const found = list?.(values) ?? [];
      if (found.join("\n") !== proposed) {
        proposed = found.join("\n");
        proposals.replaceChildren(...found.map((each) => element("option", { value: each })));
      }
      small.textContent = hint?.(values) ?? "";
      small.hidden = !small.textContent;
    },
  };
}
