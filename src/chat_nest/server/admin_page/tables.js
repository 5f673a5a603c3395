// Tables whose rows stay the same elements while their cells change, so that the focus stays where it is.

import { element } from "./dom.js";
import { word } from "./words.js";

/**
 * @typedef {{head: string, text?: (row: any) => string, draw?: (cell: HTMLElement, row: any) => void, kind?: string, title?: (row: any) => string}} Column
 *   `text` is the cell's text; `draw` fills the cell, and is called again for each change. `kind`: number, acts, code, wide
 */

export class Table {
  /**
   * @param {HTMLElement} place
   * @param {{caption: string, columns: Column[], key: (row: any) => string, none: string, most?: number}} form
   *   with more than `most` rows, a button shows the rest
   */
  constructor(place, { caption, columns, key, none, most = Infinity }) {
    this.most = most;
    this.found = [];
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    this.body = element("tbody");
    const heads = columns.map(({ head, kind }) =>
      element("th", { scope: "col", class: kind }, kind === "acts" ? element("span", { class: "unseen" }, head) : head));
    this.table = element("table", {}, element("caption", { class: "unseen" }, caption), element("thead", {}, element("tr", {}, ...heads)), this.body);
    this.none = element("p", { class: "none" }, none);
    this.more = element("button", { type: "button", class: "link", onclick: () => this.showAll() });
    place.replaceChildren(this.table, this.none, this.more);
  }

  showAll() {
    const { most } = this;
    this.most = Infinity;
    this.show(this.found);
    /** @type {HTMLElement | null} */ (this.body.children[most]?.querySelector("button"))?.focus();
  }

  /** @param {any[]} all */
  show(all) {
    this.found = all;
    const found = all.slice(0, this.most);
    this.more.hidden = found.length === all.length;
    setText(this.more, word("show_all", { count: all.length }));
    const keys = new Set(found.map(this.key));
    for (const [key, { row }] of this.rows) {
      if (keys.has(key)) continue;
      if (row.contains(document.activeElement)) focusNear(row);
      row.remove();
      this.rows.delete(key);
    }
    found.forEach((each, index) => {
      const key = this.key(each);
      if (!this.rows.has(key)) this.rows.set(key, this.make());
      const { row, cells } = this.rows.get(key);
      this.columns.forEach((column, place) => {
        const cell = cells[place];
        if (column.draw) column.draw(cell, each);
        else setText(cell, column.text?.(each) ?? "");
        if (column.title) cell.title = column.title(each);
      });
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
    this.table.hidden = !found.length;
    this.none.hidden = found.length > 0;
  }

  make() {
    const cells = this.columns.map(({ head, kind }, index) =>
      element(index ? "td" : "th", { class: kind, "data-head": head, ...(!index && { scope: "row" }) }));
    return { row: element("tr", {}, ...cells), cells };
  }
}

/** @param {Node} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The focus goes to the next row's button, else to the heading of the card. @param {HTMLElement} row */
export function focusNear(row) {
  const near = row.nextElementSibling ?? row.previousElementSibling;
  const target = /** @type {HTMLElement | null} */ (near?.querySelector("button") ?? row.closest("section")?.querySelector("h2"));
  target?.focus();
}

/** Buttons of a row, made once; `acts` gets the row as it is when it is pressed. @param {HTMLElement} cell @param {any} row @param {{label: string, name: string, act: (row: any) => void, class?: string}[]} acts */
export function buttons(cell, row, acts) {
  /** @type {any} */ (cell).row = row;
  if (cell.childElementCount !== acts.length) {
    cell.replaceChildren(...acts.map(() => element("button", { type: "button", class: "quiet small" })));
  }
  acts.forEach(({ label, name, act }, index) => {
    const button = /** @type {HTMLButtonElement} */ (cell.children[index]);
    setText(button, label);
    if (button.ariaLabel !== name) button.ariaLabel = name;
    button.onclick = () => act(/** @type {any} */ (cell).row);
  });
}
