// A confusion matrix as a table: rows are the truth, columns the answer, cells the pixels.

import { element } from "../dom.js";

const MOST_INK = 45;

export function confusionMatrix({ classes, matrix }) {
  const corner = element("td", {}, "truth \\ answer");
  const heads = classes.map(({ name }) => element("th", { scope: "col" }, name));
  const rows = matrix.map((counts, k) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    const cells = counts.map((count, j) => cell(count, total, classes[k].name, classes[j].name));
    return element("tr", {}, element("th", { scope: "row" }, classes[k].name), ...cells);
  });
  return element(
    "table",
    { className: "matrix" },
    element("thead", {}, element("tr", {}, corner, ...heads)),
    element("tbody", {}, ...rows),
  );
}

function cell(count, total, truth, guess) {
  const share = total ? count / total : 0;
  const ink = Math.round(MOST_INK * share);
  return element(
    "td",
    {
      title: `${count.toLocaleString("en")} pixels of ${truth} answered as ${guess}: ${(100 * share).toFixed(2)} %`,
      style: { background: `color-mix(in srgb, var(--accent) ${ink}%, transparent)` },
    },
    short(count),
  );
}

/** Return a count in at most four characters. */
function short(count) {
  if (count < 1000) return String(count);
  const [scale, letter] = count < 1e6 ? [1e3, "k"] : count < 1e9 ? [1e6, "M"] : [1e9, "G"];
  const number = count / scale;
  return `${number < 10 ? number.toFixed(1) : number.toFixed(0)}${letter}`;
}
