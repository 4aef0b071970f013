// The part "Now": the last 15 minutes, from the service's own metrics.

import { ask } from "../api.js";
import { byId, say } from "../dom.js";
import { Chart } from "./chart.js";

const EVERY_MS = 5000;
const WINDOW_S = 900;

const CHARTS = [
  { title: "Pictures a second", series: (a, b) => ({ pictures: rate(a, b, "pictures") }) },
  { title: "Latency of a request, ms", series: (a, b) => ({ "half within": quantile(a, b, 0.5), "95 % within": quantile(a, b, 0.95), "99 % within": quantile(a, b, 0.99) }) },
  { title: "Pictures that wait", series: (_, b) => ({ queue: b.queue }) },
  { title: "Pictures in a batch", series: (a, b) => ({ batch: b.batches > a.batches ? (b.pictures - a.pictures) / (b.batches - a.batches) : null }) },
  { title: "Device busy, %", series: (_, b) => ({ busy: 100 * b.busy }) },
  { title: "Open streams", series: (_, b) => ({ streams: b.streams }) },
  { title: "Frames a second", series: (a, b) => rates(a, b, "frames") },
  { title: "Refusals a minute", series: (a, b) => scaled(rates(a, b, "rejected"), 60) },
];

export class NowPage {
  constructor() {
    this.samples = [];
    this.charts = CHARTS.map(({ title }) => new Chart(title, WINDOW_S));
    byId("charts").append(...this.charts.map((chart) => chart.figure));
  }

  leave() {
    clearTimeout(this.timer);
  }

  async show() {
    this.leave();
    try {
      const after = this.samples.at(-1)?.time_s ?? 0;
      const { now_s: nowS, samples } = await (await ask(`admin/v1/history?after=${after}`)).json();
      this.samples = [...this.samples, ...samples].filter((one) => one.time_s > nowS - WINDOW_S);
      this.draw(nowS);
      say(byId("now-status"), this.samples.length < 2 ? "The first figures come in a few seconds." : "");
    } catch (error) {
      say(byId("now-status"), error.message, true);
    }
    this.timer = setTimeout(() => this.show(), EVERY_MS);
  }

  draw(nowS) {
    const pairs = this.samples.slice(1).map((b, i) => [this.samples[i], b]);
    for (const [i, { series }] of CHARTS.entries()) {
      this.charts[i].draw(pairs.map(([a, b]) => ({ agoS: nowS - b.time_s, values: series(a, b) })));
    }
  }
}

function rate(a, b, name) {
  return Math.max(0, b[name] - a[name]) / (b.time_s - a.time_s);
}

/** Return a rate for each label that ever counted. */
function rates(a, b, name) {
  const counted = Object.entries(b[name]).filter(([, value]) => value > 0);
  return Object.fromEntries(counted.map(([label, value]) => [label, Math.max(0, value - (a[name][label] ?? 0)) / (b.time_s - a.time_s)]));
}

function scaled(values, factor) {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value * factor]));
}

/** Return a quantile in milliseconds, from the counts of a histogram between two samples; null without any. */
function quantile(a, b, share) {
  const bounds = Object.keys(b.latency).sort((x, y) => seconds(x) - seconds(y));
  const counts = bounds.map((bound) => b.latency[bound] - (a.latency[bound] ?? 0));
  const wanted = share * (counts.at(-1) ?? 0);
  if (!wanted) return null;
  const at = counts.findIndex((count) => count >= wanted);
  const [low, high] = [at ? seconds(bounds[at - 1]) : 0, seconds(bounds[at])];
  const [before, inside] = [at ? counts[at - 1] : 0, counts[at] - (at ? counts[at - 1] : 0)];
  return 1000 * (Number.isFinite(high) ? low + ((high - low) * (wanted - before)) / inside : low);
}

function seconds(bound) {
  return bound === "+Inf" ? Infinity : Number(bound);
}
