// The images of messages. Each is drawn anew before it is sent: no larger than the model sees it, and without what a
// camera writes into the file, such as the place.

import { byId, element } from "./dom.js";
import { config, word } from "./words.js";

/** An image of a message. @typedef {{name: string, width: number, height: number, blob: Blob}} Picture */
/** The limits of a profile: see page_settings.py. @typedef {{most: number, bytes: number, pixels: number}} Limits */

/** The characters of a request that are left for its text. */
const TEXT = 262_144;
const JPEG_QUALITY = 0.85;
/** A larger PNG is a photo. */
const MAX_PNG = 1_000_000;
const LOSSLESS = new Set(["image/png", "image/gif", "image/webp"]);
const SENDABLE = new Set([...LOSSLESS, "image/jpeg"]);
const LEFT_OUT = "[An image stood here. It was left out.]";

/** The bytes of the images that one request has room for. */
export const room = () => Math.max(0, ((config.max_upload_bytes - TEXT) * 3) / 4);

/** @param {File} file @param {Limits} limits @returns {Promise<Picture | null>} null if the browser can't read it */
export async function readImage(file, limits) {
  const most = Math.min(limits.bytes, room());
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return null;
  const { width, height } = bitmap;
  if (!canvasIsTrue()) {
    return SENDABLE.has(file.type) && file.size <= most ? { name: file.name, width, height, blob: file } : null;
  }
  let scale = Math.min(1, Math.sqrt(limits.pixels / (width * height)));
  for (;; scale *= 0.7) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(width * scale));
    canvas.height = Math.max(1, Math.floor(height * scale));
    const blob = await encoded(canvas, bitmap, LOSSLESS.has(file.type));
    if (blob && (blob.size <= most || scale < 0.01)) return { name: file.name, width: canvas.width, height: canvas.height, blob };
    if (!blob || scale < 0.01) return null;
  }
}

/** @param {HTMLCanvasElement} canvas @param {ImageBitmap} bitmap @returns {Promise<Blob | null>} */
async function encoded(canvas, bitmap, isLossless) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const as = (type) => new Promise((done) => canvas.toBlob(done, type, JPEG_QUALITY));
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const png = isLossless ? await as("image/png") : null;
  if (png && png.size <= MAX_PNG) return png;
  context.globalCompositeOperation = "destination-over"; // what is transparent is white in a JPEG
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return as("image/jpeg");
}

/** @returns {boolean} false in browsers that answer with noise, so that pages can't recognise a device */
function canvasIsTrue() {
  const context = document.createElement("canvas").getContext("2d");
  if (!context) return false;
  context.fillStyle = "#123456";
  context.fillRect(0, 0, 9, 9);
  const { data } = context.getImageData(0, 0, 9, 9);
  return data.every((value, index) => value === [0x12, 0x34, 0x56, 0xff][index % 4]);
}

/** @param {Blob} blob @returns {Promise<string>} */
export const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(/** @type {string} */ (reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

/**
 * The newest images of the messages, as many as one request may have.
 * @param {{images?: Picture[]}[]} messages @param {Limits | null} limits
 * @returns {Set<Picture>}
 */
export function sendable(messages, limits) {
  const found = new Set();
  let left = room();
  for (const picture of messages.flatMap(({ images = [] }) => images).reverse()) {
    left -= picture.blob.size;
    if (!limits || found.size === limits.most || left < 0) break;
    found.add(picture);
  }
  return found;
}

/** The content of a message with images, as parts of the server's format. @param {string} text @param {Picture[]} images @param {Set<Picture>} sent */
export const contentOf = (text, images, sent) =>
  Promise.all([
    ...images.map(async (picture) =>
      sent.has(picture) ? { type: "image_url", image_url: { url: await dataUrl(picture.blob) } } : { type: "text", text: LEFT_OUT },
    ),
    ...(text ? [{ type: "text", text }] : []),
  ]);

/** @param {Picture} picture @param {Record<string, any>} [attributes] */
export function imageElement({ name, width, height, blob }, attributes = {}) {
  const url = URL.createObjectURL(blob);
  const free = () => URL.revokeObjectURL(url);
  return element("img", { src: url, alt: word("image.named", { name }), width, height, decoding: "async", onload: free, onerror: free, ...attributes });
}

/** The images of a message, each of which opens larger. @param {Picture[]} images */
export function gallery(images) {
  const open = (picture) => {
    byId("picture").replaceChildren(imageElement(picture));
    byId("picture").showModal();
  };
  const button = (picture) =>
    element("button", { type: "button", class: "picture", title: word("image.larger"), onclick: () => open(picture) }, imageElement(picture));
  return element("div", { class: "pictures" }, ...images.map(button));
}
