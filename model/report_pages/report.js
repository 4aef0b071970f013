"use strict";
// Curves are read under the pointer and by a slider; the page of a running run follows it.

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.slider = Object.assign(document.createElement("input"), { type: "range", min: 0 });
    this.slider.setAttribute("aria-label", `Step of ${figure.dataset.title}`);
    this.slider.addEventListener("input", () => this.tell(Number(this.slider.value)));
    figure.querySelector("svg[role=img]").after(this.slider);
    this.legend = figure.querySelector("ul");
    this.legend.addEventListener("pointerover", ({ target }) => this.raise(target.closest("li")));
    this.legend.addEventListener("pointerleave", () => this.raise(null));
    this.legend.addEventListener("focusin", ({ target }) => this.raise(target.closest("li")));
    this.legend.addEventListener("focusout", () => this.raise(null));
    this.begin();
  }

  /** Take the rows of the figure, and stand at the last step unless the reader chose another. */
  begin() {
    const isAtEnd = !this.rows || Number(this.slider.value) === this.rows.length - 1;
    const step = this.rows?.[Number(this.slider.value)][1];
    this.rows = JSON.parse(this.figure.dataset.rows);
    this.slider.max = this.rows.length - 1;
    this.slider.hidden = this.rows.length < 2;
    const same = this.rows.findIndex((row) => row[1] === step);
    this.svg = this.figure.querySelector("svg[role=img]");
    this.svg.addEventListener("pointermove", ({ clientX }) => this.point(clientX));
    this.svg.addEventListener("pointerleave", () => this.tell(this.rows.length - 1));
    const items = [...this.legend.children];
    if (items.length > 1) for (const item of items) item.tabIndex = 0; // a line is raised by keyboard too
    this.tell(isAtEnd || same < 0 ? this.rows.length - 1 : same);
  }

  /** Show what a newer page shows in place of this chart. */
  take(next) {
    this.figure.dataset.rows = next.dataset.rows;
    this.svg.replaceWith(document.importNode(next.querySelector("svg[role=img]"), true));
    const [old, fresh] = [this.legend.children, next.querySelector("ul").children];
    if (old.length !== fresh.length) this.legend.replaceChildren(...[...fresh].map((one) => document.importNode(one, true)));
    this.begin();
  }

  point(clientX) {
    const box = this.svg.getBoundingClientRect();
    const x = ((clientX - box.left) / box.width) * this.svg.viewBox.baseVal.width;
    const far = (row) => Math.abs(row[0] - x);
    this.tell(this.rows.reduce((best, row, i) => (far(row) < far(this.rows[best]) ? i : best), 0));
  }

  tell(at) {
    const [x, step, values] = this.rows[at];
    const isLast = at === this.rows.length - 1;
    this.slider.value = at;
    this.figure.querySelector(".at").textContent = `step ${step}`;
    const names = [...this.legend.querySelectorAll(".name")].map((one) => one.textContent);
    this.legend.querySelectorAll(".value").forEach((one, i) => (one.textContent = values[i]));
    this.slider.setAttribute("aria-valuetext", `step ${step}: ${names.map((name, i) => `${name} ${values[i]}`).join(", ")}`);
    const marker = this.svg.querySelector(".marker");
    for (const end of ["x1", "x2"]) marker.setAttribute(end, x);
    marker.setAttribute("visibility", isLast ? "hidden" : "visible");
  }

  raise(item) {
    const chosen = item ? [...this.legend.children].indexOf(item) : -1;
    this.svg.querySelectorAll(".series").forEach((line, i) => line.classList.toggle("faint", chosen >= 0 && i !== chosen));
  }
}

const charts = new Map();

function draw(root) {
  for (const figure of root.querySelectorAll("figure[data-rows]")) charts.set(figure.id, new Chart(figure));
}

/** Bring this page to the state of a newer one, part by part; what the reader opened or holds stays. */
function adopt(next) {
  const main = document.querySelector("main");
  let before = null;
  for (const part of next.querySelectorAll("main > [data-part]")) {
    const old = document.getElementById(part.id);
    if (!old) {
      const fresh = document.importNode(part, true);
      if (before) before.after(fresh);
      else main.prepend(fresh);
      draw(fresh);
      before = fresh;
      continue;
    }
    before = old.dataset.part === part.dataset.part ? old : renewed(old, part);
  }
}

function renewed(old, part) {
  const figures = [...part.querySelectorAll("figure[data-rows]")];
  const known = [...old.querySelectorAll("figure[data-rows]")];
  if (figures.length && figures.map(({ id }) => id).join() === known.map(({ id }) => id).join()) {
    for (const figure of figures) charts.get(figure.id).take(figure);
    old.dataset.part = part.dataset.part;
    return old;
  }
  if (old.contains(document.activeElement)) return old; // later, when the reader has gone on
  const fresh = document.importNode(part, true);
  for (const one of old.querySelectorAll("details[open]")) {
    const same = fresh.querySelector(`#${CSS.escape(one.id)}`);
    if (same) same.open = true;
  }
  old.replaceWith(fresh);
  draw(fresh);
  return fresh;
}

function say(text, isBad = false) {
  const status = document.getElementById("live");
  if (status.textContent !== text) status.textContent = text;
  status.classList.toggle("bad", isBad);
}

async function follow(everyMs) {
  let isLive = true;
  try {
    const answer = await fetch(location.href, { cache: "no-cache" });
    if (!answer.ok) throw new Error(answer.statusText);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    adopt(next);
    isLive = next.querySelector("main").hasAttribute("data-refresh-ms");
    say(isLive ? "Live: this page follows the run." : "The run has ended. This is its report.");
  } catch {
    say("The run does not answer: it has ended, or the connection is lost. This is its last known state. Its folder keeps the report: report/index.html.", true);
  }
  if (isLive) setTimeout(() => follow(everyMs), everyMs);
}

draw(document);
const refreshMs = Number(document.querySelector("main").dataset.refreshMs ?? 0);
if (refreshMs) follow(refreshMs);
