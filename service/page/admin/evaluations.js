// The part "Evaluations": start, watch, cancel; the report of one, or two side by side.

import { ask } from "../api.js";
import { byId, element, percent, say, swatch } from "../dom.js";
import { confusionMatrix } from "./matrix.js";
import { table } from "./versions.js";

const PATH = "admin/v1/evaluations";
const WORST = 10;
const POINTS = 100;

export class EvaluationsPage {
  constructor() {
    this.status = byId("evaluations-status");
    this.jobs = new Map();
    this.chosen = new Set();
    byId("submit").addEventListener("submit", (event) => {
      event.preventDefault();
      this.attempt(() => this.submit(new FormData(event.target)));
    });
  }

  leave() {
    this.watching?.abort();
  }

  async show() {
    this.leave();
    this.watching = new AbortController();
    await this.attempt(async () => {
      await this.fillForm();
      const { evaluations } = await (await ask(PATH)).json();
      this.jobs = new Map(evaluations.map((job) => [job.id, job]));
      this.list();
      for (const job of evaluations) if (!isFinal(job)) this.watch(job.id);
    });
  }

  async attempt(action) {
    try {
      await action();
    } catch (error) {
      if (error.name === "AbortError") return;
      const missing = error.status === 404 ? "This service runs no evaluation jobs (jobs.mode)." : error.message;
      say(this.status, missing, true);
    }
  }

  async fillForm() {
    const form = byId("submit");
    const { datasets, protocols } = await (await ask(`${PATH}:choices`)).json();
    const { models } = await (await ask("admin/v1/models")).json();
    const names = models.flatMap(({ name, versions }) => [...versions].reverse().map(({ version }) => `${name}@${version}`));
    for (const [field, values] of [["model", names], ["dataset", datasets], ["protocol", protocols]]) {
      const before = form[field].value;
      form[field].replaceChildren(...values.map((value) => element("option", {}, value)));
      if (values.includes(before)) form[field].value = before;
    }
    form.querySelector("button").disabled = datasets.length === 0;
    if (!datasets.length) say(this.status, "No data set is configured: name one under [datasets] in the settings.");
  }

  async submit(fields) {
    const options = { method: "POST", headers: { "Content-Type": "application/json" } };
    const job = await (await ask(PATH, { ...options, body: JSON.stringify(Object.fromEntries(fields)) })).json();
    say(this.status, `The evaluation of ${job.model} on ${job.dataset} is queued.`);
    this.jobs = new Map([[job.id, job], ...this.jobs]);
    this.list();
    this.watch(job.id);
  }

  /** Follow a job by its events until it has ended. */
  async watch(id) {
    await this.attempt(async () => {
      const answer = await ask(`${PATH}/${id}/events`, { signal: this.watching.signal });
      for await (const job of eventsOf(answer)) {
        this.jobs.set(id, job);
        this.list();
        if (isFinal(job)) say(this.status, `The evaluation of ${job.model} on ${job.dataset} ${stateWords(job)}.`);
      }
    });
  }

  list() {
    const rows = [...this.jobs.values()].map((job) => [
      `${job.model}`,
      `${job.dataset} ${job.split}`,
      job.protocol,
      element("span", { className: job.error ? "words" : "" }, stateWords(job), isFinal(job) ? null : progress(job)),
      job.result ? points(job.result.miou) : "",
      this.actions(job),
    ]);
    const made = table(["model", "data set", "protocol", "state", "mIoU", "actions"], rows);
    byId("jobs").replaceChildren(...made.children);
  }

  actions(job) {
    if (!isFinal(job)) {
      const cancel = element("button", { type: "button", ariaLabel: `Cancel the evaluation of ${job.model}` }, "Cancel");
      cancel.addEventListener("click", () => this.attempt(() => ask(`${PATH}/${job.id}`, { method: "DELETE" })));
      return cancel;
    }
    if (job.state !== "succeeded") return "";
    const show = element("button", { type: "button", ariaLabel: `Show the report of ${job.model}` }, "Show");
    show.addEventListener("click", () => this.attempt(() => this.open([job])));
    const box = element("input", { type: "checkbox", checked: this.chosen.has(job.id) });
    box.addEventListener("change", () => {
      if (box.checked) this.chosen.add(job.id);
      else this.chosen.delete(job.id);
      const pair = [...this.chosen].slice(-2).map((id) => this.jobs.get(id));
      if (pair.length === 2) this.attempt(() => this.open(pair));
    });
    return element("span", { className: "line" }, show, element("label", {}, box, " compare"));
  }

  async open(jobs) {
    const reports = await Promise.all(jobs.map(async ({ id }) => (await ask(`${PATH}/${id}/scores`)).json()));
    const [first, other] = reports;
    const parts = other ? comparison(first, other) : this.single(jobs[0], first);
    byId("report").replaceChildren(...parts);
    byId("report").scrollIntoView();
  }

  single(job, report) {
    const { scores } = report;
    const between = scores.miou_interval ? `, 95 % of resamples ${interval(scores.miou_interval)}` : "";
    const download = element("button", { type: "button" }, "Download the report with pictures");
    download.addEventListener("click", () => this.attempt(() => save(job)));
    return [
      element("h2", {}, `${report.model} on ${report.dataset} ${report.split}`),
      element("p", {}, `mIoU ${points(scores.miou)}${between}; ${report.images} pictures, ${report.precision}, ${job.protocol}.`),
      download,
      element("h2", {}, "IoU of each class"),
      wide("IoU of each class", table(["class", "IoU", "bar", "95 % of resamples", "share of pixels"], report.classes.map(classRow))),
      element("h2", {}, "Confusion matrix"),
      wide("Confusion matrix", confusionMatrix(report)),
      element("h2", {}, "Worst pictures"),
      wide("Worst pictures", table(["picture", "mIoU"], worst(report).map((one) => [one.name, points(one.miou)]))),
    ];
  }
}

/** Yield the documents of a stream of server-sent events. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice("data: ".length));
    }
  }
}

async function save({ id }) {
  const link = element("a", {
    href: URL.createObjectURL(await (await ask(`${PATH}/${id}/report`)).blob()),
    download: `evaluation-${id}.html`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function comparison(first, other) {
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

function worst({ per_image: pictures }) {
  return pictures.filter(({ miou }) => miou !== null).sort((a, b) => a.miou - b.miou).slice(0, WORST);
}

function wide(name, content) {
  return element("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: name }, content);
}

function isFinal({ state }) {
  return state !== "queued" && state !== "running";
}

function stateWords({ state, done, total, error }) {
  if (state === "running") return total === null ? "running" : `${done} of ${total}`;
  return error ? `${state}: ${error}` : state;
}

function progress({ done, total }) {
  const bar = element("progress", { max: total ?? 1, value: done, ariaLabel: "Pictures that are counted" });
  if (total === null) bar.removeAttribute("value");
  return bar;
}

function points(share) {
  return share === null ? "none" : `${(POINTS * share).toFixed(1)} %`;
}

function interval([low, high]) {
  return `${points(low)} to ${points(high)}`;
}
