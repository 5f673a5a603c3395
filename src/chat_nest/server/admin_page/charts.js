// Stacked bars, drawn by uPlot, which is loaded with the first chart. What they show is in a table as well.

import { element } from "./dom.js";

const FOLDER = "lib/uplot-1.6.32";
/** @type {Promise<any> | null} */
let loading = null;

function load() {
  loading ??= (async () => {
    document.head.append(element("link", { rel: "stylesheet", href: `${FOLDER}/uPlot.min.css` }));
    return (await import("./lib/uplot-1.6.32/uPlot.esm.js")).default;
  })();
  return loading;
}

/** @param {Element} place @param {string} name a custom property @returns {string} its colour in this scheme */
const colour = (place, name) => getComputedStyle(place).getPropertyValue(name).trim();

/**
 * @typedef {{labels: string[], series: {name: string, colour: string, values: number[]}[], format: (value: number) => string,
 *   describe: string, legend?: boolean}} Bars `colour` is the name of a custom property; the first series is at the bottom
 */

export class Chart {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    this.canvas = element("div", { class: "canvas", role: "img" });
    this.reading = element("p", { class: "reading", "aria-hidden": "true" });
    this.legend = element("ul", { class: "legend" });
    place.replaceChildren(this.canvas, this.reading, this.legend);
    /** @type {Bars | null} */
    this.bars = null;
    this.shown = "";
    this.plot = null;
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => this.draw());
    }
  }

  /** @param {Bars} bars */
  show(bars) {
    const text = JSON.stringify([bars.labels, bars.series, bars.describe]);
    if (text === this.shown) return;
    this.shown = text;
    this.bars = bars;
    this.canvas.setAttribute("aria-label", bars.describe);
    this.legend.replaceChildren(...(bars.legend ? bars.series : []).map(({ name, colour: of }) => {
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = `var(${of})`;
      return element("li", {}, swatch, name);
    }));
    this.draw();
  }

  async draw() {
    const Plot = await load().catch(() => null); // the table has it all
    const { bars, canvas } = this;
    if (!Plot || !bars) return;
    const count = bars.labels.length;
    const sums = new Array(count).fill(0);
    const stacked = bars.series.map(({ values }) => values.map((value, index) => (sums[index] += value)));
    const top = Math.max(...sums);
    const gap = colour(canvas, "--surface");
    const series = bars.series.map(({ name, colour: of }) => ({
      label: name,
      fill: colour(canvas, of),
      stroke: gap,
      width: 1,
      paths: Plot.paths.bars({ size: [0.82, 48], align: 0 }),
      points: { show: false },
    }));
    const ink = colour(canvas, "--soft");
    const axis = { stroke: ink, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    this.plot?.destroy();
    this.plot = new Plot(
      {
        width: canvas.clientWidth || 300,
        height: 190,
        padding: [8, 4, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
        scales: { x: { time: false, range: () => [-0.6, count - 0.4] }, y: { range: () => [0, top > 0 ? top * 1.08 : 1] } },
        axes: [
          { ...axis, grid: { show: false }, incrs: [1, 2, 5, 7, 10, 15, 30], space: 60, values: (_, at) => at.map((index) => bars.labels[index] ?? "") },
          { ...axis, size: 62, grid: { stroke: colour(canvas, "--line"), width: 1 }, values: (_, at) => at.map(bars.format) },
        ],
        series: [{}, ...series.reverse()],
        hooks: { setCursor: [(plot) => this.read(plot.cursor.idx)] },
      },
      [bars.labels.map((_, index) => index), ...stacked.reverse()],
      canvas,
    );
  }

  /** Show the values under the pointer. @param {number | null} index */
  read(index) {
    const { bars } = this;
    if (index === null || index === undefined || !bars || this.plot?.cursor.left < 0) return this.reading.replaceChildren();
    const found = bars.series.filter(({ values }) => values[index]);
    this.reading.textContent = [bars.labels[index], ...found.map(({ name, values }) => `${name} ${bars.format(values[index])}`)].join(" · ");
  }

  resize() {
    const width = this.canvas.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: 190 });
  }
}
