// The report of one evaluation, and two side by side.

import { element, percent, swatch } from "../dom.js";
import { Gallery } from "./gallery.js";
import { confusionMatrix } from "./matrix.js";
import { table } from "./versions.js";

const WORST = 10;
const POINTS = 100;
const CELL_HINT = "Rows are the truth, columns the answer, numbers pixels. A cell opens the pictures with most of its pixels.";
const OLD_REPORT =
  "This report is of an earlier release, which did not keep the counts of each picture: evaluate again to open the pictures of a cell.";

export class Report {
  /** @param {string} path of the evaluation */
  constructor(report, path) {
    this.report = report;
    this.ofCell = new Gallery(path);
    this.ofWorst = new Gallery(path);
  }

  close() {
    this.ofCell.close();
    this.ofWorst.close();
  }

  parts() {
    return [...summary(this.report), ...classes(this.report), ...this.matrix(), ...this.worst()];
  }

  matrix() {
    const hint = this.report.per_image.every(({ cells }) => cells) ? CELL_HINT : OLD_REPORT;
    return [
      element("h2", {}, "Confusion matrix"),
      element("p", { className: "hint" }, hint),
      wide("Confusion matrix", confusionMatrix(this.report, (truth, answer) => this.openCell(truth, answer))),
      this.ofCell.root,
    ];
  }

  openCell(truth, answer) {
    const [name, given] = [truth, answer].map((id) => this.report.classes[id].name);
    const entries = picturesOfCell(this.report, truth, answer);
    this.ofCell.open(`${name} answered ${truth === answer ? "rightly" : `as ${given}`}: pictures`, entries, [truth, answer]);
  }

  worst() {
    const rows = worstPictures(this.report).map((one) => {
      const show = element("button", { type: "button", ariaLabel: `Show ${one.name}` }, "Show");
      const entry = { ...one, words: `mIoU ${points(one.miou)}.` };
      show.addEventListener("click", () => this.ofWorst.open("One of the worst pictures", [entry]));
      return [one.name, points(one.miou), show];
    });
    return [
      element("h2", {}, "Worst pictures"),
      wide("Worst pictures", table(["picture", "mIoU", "view"], rows)),
      this.ofWorst.root,
    ];
  }
}

function summary(report) {
  const { scores } = report;
  const between = scores.miou_interval ? `, 95 % of resamples ${interval(scores.miou_interval)}` : "";
  return [
    element("h2", {}, `${report.model} on ${report.dataset} ${report.split}`),
    element("p", {}, `mIoU ${points(scores.miou)}${between}; ${report.images} pictures, ${report.precision}, ${report.protocol_name}.`),
  ];
}

function classes(report) {
  const heads = ["class", "IoU", "bar", "95 % of resamples", "share of pixels"];
  return [element("h2", {}, "IoU of each class"), wide("IoU of each class", table(heads, report.classes.map(classRow)))];
}

/** Return the pictures with pixels in a cell of the matrix, those with the most first. */
function picturesOfCell({ classes: all, per_image: pictures }, truth, answer) {
  const cell = truth * all.length + answer;
  const count = ({ cells, pixels }) => pixels?.[cells.indexOf(cell)] ?? 0;
  return pictures
    .filter((one) => count(one) > 0)
    .sort((a, b) => count(b) - count(a) || a.index - b.index)
    .map((one) => ({ ...one, words: `${count(one).toLocaleString("en")} of its pixels are in this cell.` }));
}

function worstPictures({ per_image: pictures }) {
  return pictures.filter(({ miou }) => miou !== null).sort((a, b) => a.miou - b.miou).slice(0, WORST);
}

export function comparison(first, other) {
  const iou = new Map(other.classes.map((one) => [one.name, one.iou]));
  const rows = first.classes.map((one) => {
    const second = iou.get(one.name) ?? null;
    return [label(one), points(one.iou), points(second), difference(one.iou, second)];
  });
  const total = [element("strong", {}, "mIoU"), points(first.scores.miou), points(other.scores.miou)];
  rows.unshift([...total, difference(first.scores.miou, other.scores.miou)]);
  const title = (report) => `${report.model} ${report.precision}`;
  return [
    element("h2", {}, "Side by side"),
    element("p", {}, `${first.dataset} ${first.split} and ${other.dataset} ${other.split}`),
    wide("Side by side", table(["class", title(first), title(other), "difference"], rows)),
  ];
}

function difference(a, b) {
  if (a === null || b === null) return "none";
  const delta = POINTS * (b - a);
  return `${delta >= 0 ? "+" : "−"}${Math.abs(delta).toFixed(1)}`;
}

function classRow(one) {
  const width = `${POINTS * (one.iou ?? 0)}%`;
  const bar = element("span", { className: "bar meter" }, element("span", { className: "fill", style: { width } }));
  return [label(one), points(one.iou), bar, one.iou_interval ? interval(one.iou_interval) : "none", percent(one.share ?? 0)];
}

function label({ name, color }) {
  return element("span", { className: "label" }, swatch(color), name);
}

function wide(name, content) {
  return element("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: name }, content);
}

export function points(share) {
  return share === null ? "none" : `${(POINTS * share).toFixed(1)} %`;
}

function interval([low, high]) {
  return `${points(low)} to ${points(high)}`;
}
