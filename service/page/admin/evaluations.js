// The part "Evaluations": start, watch, cancel; the report of one, or two side by side.

import { ask, inWords, ServiceError } from "../api.js";
import { byId, element, say } from "../dom.js";
import { comparison, points, Report } from "./report.js";
import { table } from "./versions.js";

const PATH = "admin/v1/evaluations";
const AGAIN_MS = 2000;

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
      say(this.status, error instanceof ServiceError ? inWords(error) : "The connection to the service broke.", true);
    }
  }

  async fillForm() {
    const form = byId("submit");
    const { datasets, protocols } = await choices();
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

  /** Follow a job by its events until it has ended; a stream that breaks is opened again. */
  async watch(id) {
    const { signal } = this.watching;
    while (!signal.aborted && !isFinal(this.jobs.get(id))) {
      await this.attempt(() => this.follow(id, signal));
      await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
  }

  async follow(id, signal) {
    for await (const job of eventsOf(await ask(`${PATH}/${id}/events`, { signal }))) {
      this.jobs.set(id, job);
      this.list();
      if (isFinal(job)) say(this.status, `The evaluation of ${job.model} on ${job.dataset} ${stateWords(job)}.`);
    }
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
    this.report?.close();
    this.report = other ? null : new Report(first, `${PATH}/${jobs[0].id}`);
    const download = element("button", { type: "button" }, "Download the report with pictures");
    download.addEventListener("click", () => this.attempt(() => save(jobs[0])));
    byId("report").replaceChildren(...(other ? comparison(first, other) : [download, ...this.report.parts()]));
    byId("report").scrollIntoView();
  }
}

async function choices() {
  try {
    return await (await ask(`${PATH}:choices`)).json();
  } catch (error) {
    if (error.status === 404) throw new ServiceError("This service runs no evaluation jobs (jobs.mode).");
    throw error;
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
