// A confusion matrix as a table: rows are the truth, columns the answer, cells the pixels.
// A cell with pixels is a button; the arrow keys go from one to the next.

import { element } from "../dom.js";

const MOST_INK = 45;

const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

/** Return the table; open(truth, answer) is called with the ids of a cell that is chosen. */
export function confusionMatrix({ classes, matrix }, open) {
  const corner = element("td", {}, "truth \\ answer");
  const heads = classes.map(({ name }) => element("th", { scope: "col" }, name));
  const buttons = matrix.map((counts, k) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    return counts.map((count, j) => count && cellButton(count, total, classes[k].name, classes[j].name, () => open(k, j)));
  });
  const rows = buttons.map((cells, k) =>
    element("tr", {}, element("th", { scope: "row" }, classes[k].name), ...cells.map((cell) => element("td", {}, cell || "0"))),
  );
  const table = element(
    "table",
    { className: "matrix" },
    element("thead", {}, element("tr", {}, corner, ...heads)),
    element("tbody", {}, ...rows),
  );
  walkByKeys(table, buttons);
  return table;
}

function cellButton(count, total, truth, guess, open) {
  const share = count / total;
  const words = `${count.toLocaleString("en")} pixels of ${truth} answered as ${guess}: ${(100 * share).toFixed(2)} %`;
  const background = `color-mix(in srgb, var(--accent) ${Math.round(MOST_INK * share)}%, transparent)`;
  const button = element("button", { type: "button", title: words, ariaLabel: words, style: { background }, tabIndex: -1 }, short(count));
  button.addEventListener("click", open);
  return button;
}

/** Let one button be reached by Tab, and the others from it by the arrow keys. */
function walkByKeys(table, buttons) {
  const all = buttons.flat().filter(Boolean);
  if (all.length) all[0].tabIndex = 0;
  table.addEventListener("focusin", ({ target }) => {
    for (const button of all) button.tabIndex = button === target ? 0 : -1;
  });
  table.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    let row = buttons.findIndex((cells) => cells.includes(event.target));
    if (!step || row < 0) return;
    event.preventDefault();
    let column = buttons[row].indexOf(event.target);
    do [row, column] = [row + step[0], column + step[1]];
    while (buttons[row]?.[column] === 0);
    buttons[row]?.[column]?.focus();
  });
}

/** Return a count in at most four characters. */
function short(count) {
  if (count < 1000) return String(count);
  const [scale, letter] = count < 1e6 ? [1e3, "k"] : count < 1e9 ? [1e6, "M"] : [1e9, "G"];
  const number = count / scale;
  return `${number < 10 ? number.toFixed(1) : number.toFixed(0)}${letter}`;
}
