// A line chart of the last minutes: axes, a legend, and the values under the pointer.

import { element } from "../dom.js";

const WIDTH = 480;
const HEIGHT = 150;
const LEFT = 44;
const BOTTOM = 22;
const TOP = 8;
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
  constructor(title, windowS) {
    Object.assign(this, { title, windowS, points: [], names: [] });
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.legend = element("ul", { className: "inline" });
    this.figure = element("figure", { className: "chart" }, element("figcaption", {}, title), this.svg, this.legend);
    this.svg.addEventListener("pointermove", ({ clientX }) => this.point(clientX));
    this.svg.addEventListener("pointerleave", () => this.tell(this.points.at(-1)));
  }

  /** Draw points [{agoS, values: {name: number | null}}], the oldest first. */
  draw(points) {
    this.points = points;
    this.names = [...new Set(points.flatMap(({ values }) => Object.keys(values)))];
    const most = Math.max(0, ...points.flatMap(({ values }) => Object.values(values).map((value) => value ?? 0)));
    this.top = niceTop(most);
    this.marker = svg("line", { class: "marker", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.svg.replaceChildren(...this.axes(), ...this.names.map((name, i) => this.line(name, i)), this.marker);
    this.tell(points.at(-1));
  }

  axes() {
    const minutes = [15, 10, 5, 0].map((minute) =>
      svg("text", { x: this.x(minute * 60), y: HEIGHT - 6, "text-anchor": minute ? "middle" : "end" }, minute ? `−${minute} min` : "now"),
    );
    const levels = [0, 0.5, 1].flatMap((share) => {
      const y = this.y(share * this.top);
      return [
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y, y2: y }),
        svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, number(share * this.top)),
      ];
    });
    minutes[0].setAttribute("text-anchor", "start");
    return [...levels, ...minutes];
  }

  line(name, i) {
    let path = "";
    let isDown = false;
    for (const { agoS, values } of this.points) {
      const value = values[name] ?? null;
      const at = `${this.x(agoS).toFixed(1)} ${this.y(value ?? 0).toFixed(1)}`;
      if (value !== null) path += isDown ? `L${at}` : `M${at}l0 0`; // a value between two gaps is a dot
      isDown = value !== null;
    }
    return svg("path", { class: `series series-${i}`, d: path });
  }

  point(clientX) {
    const box = this.svg.getBoundingClientRect();
    const x = ((clientX - box.left) / box.width) * WIDTH;
    const nearest = this.points.reduce((best, one) => (Math.abs(this.x(one.agoS) - x) < Math.abs(this.x(best.agoS) - x) ? one : best), this.points[0]);
    if (!nearest) return;
    const at = this.x(nearest.agoS);
    for (const end of ["x1", "x2"]) this.marker.setAttribute(end, at);
    this.marker.setAttribute("visibility", "visible");
    this.tell(nearest);
  }

  tell(point) {
    const values = point?.values ?? {};
    const words = this.names.map((name) => `${name} ${values[name] === null || values[name] === undefined ? "none" : number(values[name])}`);
    const key = (i) => element("span", { className: `key series-${i}` });
    this.legend.replaceChildren(...words.map((text, i) => element("li", {}, key(i), text)));
    this.svg.setAttribute("aria-label", `${this.title}: ${words.join(", ") || "nothing yet"}`);
  }

  x(agoS) {
    return WIDTH - (agoS / this.windowS) * (WIDTH - LEFT);
  }

  y(value) {
    return HEIGHT - BOTTOM - (value / this.top) * (HEIGHT - BOTTOM - TOP);
  }
}

function svg(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

/** Return the smallest of 1, 2, 5, 10, 20, ... that is not below a value. */
function niceTop(value) {
  const decade = 10 ** Math.floor(Math.log10(Math.max(value, 1e-3)));
  return value ? [1, 2, 5, 10].find((step) => step * decade >= value) * decade : 1;
}

function number(value) {
  if (value === 0) return "0";
  return value < 10 ? value.toFixed(value < 1 ? 2 : 1) : value.toFixed(0);
}
