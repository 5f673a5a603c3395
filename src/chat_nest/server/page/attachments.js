// The images that the next message will have: chosen, pasted or dropped, and shown above the box.

import { byId, element, iconButton } from "./dom.js";
import { imageElement, readImage, room } from "./images.js";
import { word } from "./words.js";

/** @typedef {import("./images.js").Picture} Picture */

/** @type {Picture[]} */
let pictures = [];
/** @type {() => import("./images.js").Limits | null} */
let limits;
/** The files that are being read, one after the other. */
let reading = Promise.resolve();
let unread = 0;

/** @param {() => import("./images.js").Limits | null} offered what the chosen profile takes */
export function start(offered) {
  limits = offered;
  byId("attach").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", () => {
    add(byId("files").files);
    byId("files").value = "";
    byId("prompt").focus();
  });
  byId("prompt").addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    if (!files.length || types.includes("text/plain")) return; // a table's cells are copied as an image, too
    event.preventDefault();
    add(files);
  });
  addEventListener("dragover", (event) => drag(event, true));
  addEventListener("dragleave", (event) => event.relatedTarget || drag(event, false));
  addEventListener("drop", (event) => {
    drag(event, false);
    if (event.dataTransfer?.files.length) add(event.dataTransfer.files);
  });
  byId("picture").addEventListener("click", () => byId("picture").close());
}

/** A browser would open a file that is dropped, and leave the chat. @param {DragEvent} event @param {boolean} isOver */
function drag(event, isOver) {
  const { dataTransfer } = event;
  if (!dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  if (isOver) dataTransfer.dropEffect = limits() ? "copy" : "none";
  document.body.classList.toggle("dropping", isOver && Boolean(limits()));
}

/** @param {FileList} files */
function add(files) {
  const found = [...files];
  const most = limits();
  refuse("");
  if (!most) return refuse(word("image.closed"));
  unread += found.length;
  draw();
  for (const file of found) {
    reading = reading.then(async () => {
      const picture = await readImage(file, most).catch(() => null);
      unread -= 1;
      if (!picture) refuse(word("image.unreadable", { name: file.name }));
      else if (pictures.length >= most.most) refuse(word("image.most", { count: most.most }));
      else if ([picture, ...pictures].reduce((sum, { blob }) => sum + blob.size, 0) > room()) refuse(word("image.room"));
      else pictures.push(picture);
      draw();
    });
  }
}

/** Show why images are not sent. @param {string} text */
function refuse(text) {
  byId("attached-note").textContent = text;
  byId("attached-note").hidden = !text;
}

/** Show the images, and the button only where images are taken. */
export function draw() {
  const list = byId("attached");
  const item = (picture) => {
    const remove = iconButton("close", word("image.remove", { name: picture.name }), () => {
      pictures = pictures.filter((each) => each !== picture);
      refuse("");
      draw();
      byId("prompt").focus();
    });
    return element("li", {}, imageElement(picture), remove);
  };
  byId("attach").hidden = !limits();
  list.hidden = !pictures.length && !unread;
  list.replaceChildren(...pictures.map(item), ...Array.from({ length: unread }, () => element("li", { class: "unread", "aria-label": word("image.reading") })));
}

/** @returns {Promise<void>} when no image is being read */
export const read = () => reading;
export const isReading = () => unread > 0;
export const isEmpty = () => !pictures.length;

/** @param {Picture[]} [next] @returns {Picture[]} what was there, in place of which is `next` */
export function swap(next = []) {
  const before = pictures;
  pictures = next;
  refuse("");
  draw();
  return before;
}

/** @returns {boolean} whether the chosen profile takes what is there; if not, the page says so */
export function areTaken() {
  const most = limits()?.most ?? 0;
  if (pictures.length <= most) return true;
  refuse(most ? word("image.most", { count: most }) : word("image.closed"));
  return false;
}
