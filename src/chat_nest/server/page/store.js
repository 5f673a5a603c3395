// Conversations, on this device only: IndexedDB, or memory if the browser stores nothing. Each message is a record of
// its own, so that two tabs can write to one conversation without losing messages.

/**
 * A conversation. `head` is the id of the last message that is shown; the others are found by their `parent`.
 * @typedef {{id: string, title: string, created: number, updated: number, head: string, profile: string, system: string}} Talk
 */
/**
 * A message. `run` exists while its answer is being written, and later only if the answer is unfinished.
 * @typedef {{id: string, talk: string, parent: string, created: number, role: "user" | "assistant", content: string,
 *   images?: import("./images.js").Picture[], run?: Kept, reason?: string, costs?: any, problem?: any, stopped?: boolean, signed?: Signed[]}} Message
 */
/**
 * A piece of an answer as the server signed it; `asked` is the question that continued the answer.
 * @typedef {{asked: string, content: string, signature: string}} Signed
 */
/**
 * What another page needs to resume an answer: the run's id once it is known, and until then the request, if it can be
 * resumed at all.
 * @typedef {{id: string, key: string, body: string, before: string, asked?: string, resumable: boolean}} Kept
 */
/** @typedef {{talk: Talk, messages: Message[]}} Snapshot */

const NAME = "chat-nest";

/** @param {IDBRequest} request @returns {Promise<any>} */
const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** @param {IDBTransaction} transaction @returns {Promise<void>} */
const committed = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });

class OnDisk {
  keeps = true;

  /** @param {IDBDatabase} database */
  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close(); // a newer page needs it
  }

  begin(mode) {
    // "relaxed" waits for no disk: what matters is that another page of this browser sees it.
    const transaction = this.database.transaction(["talks", "messages"], mode, { durability: "relaxed" });
    return { transaction, talks: transaction.objectStore("talks"), messages: transaction.objectStore("messages") };
  }

  /** @returns {Promise<Talk[]>} */
  talks = () => settled(this.begin("readonly").talks.getAll());

  /** @returns {Promise<Message[]>} */
  everyMessage = () => settled(this.begin("readonly").messages.getAll());

  /** @param {string} id @returns {Promise<Snapshot | null>} */
  async read(id) {
    const { talks, messages } = this.begin("readonly");
    const [talk, found] = await Promise.all([settled(talks.get(id)), settled(messages.index("talk").getAll(id))]);
    return talk ? { talk, messages: found } : null;
  }

  /** @param {Talk} talk @param {Message[]} changed @param {Message[]} erased */
  async write(talk, changed, erased) {
    const { transaction, talks, messages } = this.begin("readwrite");
    talks.put(talk);
    for (const message of changed) messages.put(message);
    for (const { id } of erased) messages.delete(id);
    transaction.commit?.(); // at once: the page may be about to end
    await committed(transaction);
  }

  /** @param {string} id */
  async remove(id) {
    const { transaction, talks, messages } = this.begin("readwrite");
    talks.delete(id);
    for (const key of await settled(messages.index("talk").getAllKeys(id))) messages.delete(key);
    await committed(transaction);
  }
}

class InMemory {
  keeps = false;
  /** @type {Map<string, Talk>} */ all = new Map();
  /** @type {Map<string, Message>} */ said = new Map();

  talks = async () => [...this.all.values()];
  everyMessage = async () => [...this.said.values()];

  async read(id) {
    const talk = this.all.get(id);
    return talk ? { talk, messages: [...this.said.values()].filter((message) => message.talk === id) } : null;
  }

  async write(talk, changed, erased) {
    this.all.set(talk.id, talk);
    for (const message of changed) this.said.set(message.id, message);
    for (const { id } of erased) this.said.delete(id);
  }

  async remove(id) {
    this.all.delete(id);
    for (const message of [...this.said.values()]) if (message.talk === id) this.said.delete(message.id);
  }
}

async function open() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("talks", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("talk", "talk");
    };
    return new OnDisk(await settled(request));
  } catch {
    return new InMemory();
  }
}

const opening = open();
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;

/** Whether the last write failed: the device is full. */
let isFull = false;
/** @type {() => void} */
let whenFull = () => {};

/** @param {() => void} listener called when the device becomes full */
export const onFull = (listener) => void (whenFull = listener);

/** @returns {Promise<"kept" | "not_kept" | "full">} whether conversations outlive the page */
export const keeping = async () => (isFull ? "full" : (await opening).keeps ? "kept" : "not_kept");

/** @returns {Promise<Talk[]>} the newest first */
export async function talks() {
  return (await (await opening).talks()).sort((one, other) => other.updated - one.updated);
}

export const read = async (id) => (await opening).read(id);

/**
 * Store a conversation with its new and changed messages. If the device is full, the page goes on without storage.
 * @param {Talk} talk @param {Message[]} [changed] @param {Message[]} [erased]
 */
export async function write(talk, changed = [], erased = []) {
  try {
    await (await opening).write(talk, changed, erased);
    isFull = false;
  } catch (error) {
    console.warn("chat-nest: not kept:", error);
    if (!isFull) {
      isFull = true;
      whenFull();
    }
  }
  tell({ kind: "changed", talk: talk.id });
}

/** @returns {Promise<Snapshot | null>} what `restore` brings back */
export async function remove(id) {
  const store = await opening;
  const snapshot = await store.read(id);
  await store.remove(id);
  tell({ kind: "removed", talk: id });
  return snapshot;
}

export const restore = ({ talk, messages }) => write(talk, messages);

/** @param {string} text @returns {Promise<Set<string>>} the conversations that contain it, ignoring case */
export async function search(text) {
  const store = await opening;
  const sought = text.toLocaleLowerCase();
  const has = (content) => content.toLocaleLowerCase().includes(sought);
  const found = (await store.talks()).filter(({ title }) => has(title)).map(({ id }) => id);
  const said = (await store.everyMessage()).filter(({ content }) => has(content)).map(({ talk }) => talk);
  return new Set([...found, ...said]);
}

/** Notify the other tabs. @param {Record<string, any>} message */
export const tell = (message) => channel?.postMessage(message);

/** @param {(message: any) => void} listener for what other tabs did */
export function listen(listener) {
  channel?.addEventListener("message", ({ data }) => listener(data));
}

/** Not over plain http, and not in a frame of another site if the browser forbids it storage. */
const hasLocks = (navigator.locks?.query() ?? Promise.reject()).then(() => true, () => false);

/**
 * Hold the lock of a message while `write` runs, so that only one tab writes it; a tab that ends releases it. If
 * another tab has the lock, call `wait`, and `write` when that tab is done.
 * @param {string} id @param {() => Promise<void>} write @param {() => void} wait
 */
export async function alone(id, write, wait) {
  if (!(await hasLocks)) return write(); // it may be written twice, with the same result
  const name = `chat-nest:${id}`;
  const done = await navigator.locks.request(name, { ifAvailable: true }, async (lock) => lock && (await write(), true));
  if (done) return undefined;
  wait();
  return navigator.locks.request(name, write);
}

/** @returns {string} a name that nothing else has */
export const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("");
