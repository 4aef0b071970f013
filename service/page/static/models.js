// The page "Models": what is served, by which engine, and how good evaluations found it.

import { models } from "./api.js";
import { byId, element, percent, say, swatch } from "./dom.js";

export async function showModels() {
  const status = byId("models-status");
  try {
    const served = await models();
    say(status, `${served.length} ${served.length === 1 ? "version is" : "versions are"} served.`);
    byId("model-cards").replaceChildren(...served.map(card));
  } catch (error) {
    say(status, error.message, true);
  }
}

function card(model) {
  const facts = [
    ["architecture", model.architecture],
    ["engine", `${model.engine} on ${model.device}`],
    ["precision", model.precision],
    ...(model.choice ?? []).map((one) => ["measured", measured(one)]),
    ...(model.refused ? [["not used", model.refused]] : []),
  ];
  return element(
    "article",
    { className: "card" },
    element("h2", {}, `${model.name}@${model.version}${model.default ? " (default)" : ""}`),
    element("table", {}, element("tbody", {}, ...facts.map(([name, value]) => row(name, value)))),
    ...scores(`${model.name}@${model.version}`, model.evaluations),
    element("ul", { className: "classes", ariaLabel: "Classes" }, ...model.classes.map(classItem)),
  );
}

function measured({ precision, streams, threads, latency_ms: latency }) {
  return `${precision}: ${latency.toFixed(0)} ms (${counted(streams, "stream")}, ${counted(threads, "thread")})`;
}

function scores(name, evaluations) {
  if (!evaluations.length) return [element("p", { className: "hint" }, "No evaluation of this version is known here.")];
  const head = ["data set", "protocol", "precision", "mIoU", "pictures"].map((text) => element("th", { scope: "col" }, text));
  const rows = evaluations.map((one) =>
    element(
      "tr",
      {},
      ...[
        `${one.dataset} ${one.split}`,
        one.protocol,
        one.precision,
        one.miou === null ? "none" : percent(one.miou),
        String(one.images),
      ].map((text) => element("td", {}, text)),
    ),
  );
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return [element("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: `Scores of ${name}` }, table)];
}

function row(name, value) {
  return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value));
}

function classItem({ name, color }) {
  return element("li", {}, swatch(color), name);
}

function counted(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}
