// Elements and icons. Text always becomes a text node, never markup.

/** @param {string} id @returns {any} the element with this id, which index.html has */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `onclick` and its like are listeners; false, null and undefined are left out
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  back: "M15 6l-6 6 6 6",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "M5 12.5l4.5 4.5L19 7",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20l1-4.5L16.5 4 20 7.5 8.5 19z",
  forth: "M9 6l6 6-6 6",
  image: "M4 5h16v14H4zM4 16l5-5 5 5M13 15l3-3 4 4M15.5 8.5h.01",
  menu: "M4 6h16M4 12h16M4 18h16",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  plus: "M12 5v14M5 12h14",
  again: "M20 12a8 8 0 1 1-2.4-5.7M20 4v5h-5",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l4 4",
  settings: "M4 7h9M19 7h1M16 4.5v5M4 17h1M11 17h9M8 14.5v5",
  stop: "M7 7h10v10H7z",
  up: "M12 19V5M6 11l6-6 6 6",
};

/** @param {keyof typeof PATHS} name @returns {SVGElement} a drawing of the text's height, in the text's colour */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `drawing ${name}`);
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button with an icon, and a name for screen readers.
 * @param {keyof typeof PATHS} drawing @param {string} label @param {(event: MouseEvent) => void} onclick
 */
export const iconButton = (drawing, label, onclick) =>
  element("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick }, icon(drawing));
