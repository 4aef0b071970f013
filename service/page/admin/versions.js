// The part "Versions": what the registry has, which of it is served, and where the aliases point.

import { ask } from "../api.js";
import { byId, element, say } from "../dom.js";

const JSON_TYPE = { "Content-Type": "application/json" };

export class VersionsPage {
  constructor() {
    this.status = byId("versions-status");
  }

  leave() {}

  async show() {
    try {
      const { models } = await (await ask("admin/v1/models")).json();
      byId("versions").replaceChildren(...models.map((model) => this.card(model)));
    } catch (error) {
      say(this.status, error.message, true);
    }
  }

  card({ name, versions, aliases }) {
    const known = aliases.some(({ alias }) => alias === "production")
      ? aliases
      : [{ alias: "production", version: null, previous: [] }, ...aliases];
    return element(
      "article",
      { className: "card" },
      element("h2", {}, name),
      table(["version", "state", "change"], versions.map((one) => this.versionRow(name, one))),
      table(["alias", "points at", "change"], known.map((one) => this.aliasRow(name, one, versions))),
    );
  }

  versionRow(name, { version, served }) {
    const verb = served ? "unload" : "load";
    const label = `${served ? "Unload" : "Load"} ${name}@${version}`;
    const path = `${modelPath(name)}/versions/${version}:${verb}`;
    return [
      String(version),
      served ? "served" : "not served",
      this.button(served ? "Unload" : "Load", label, () => ask(path, { method: "POST" }), `${label}: done.`),
    ];
  }

  aliasRow(name, { alias, version, previous }, versions) {
    const path = `${modelPath(name)}/aliases/${encodeURIComponent(alias)}`;
    const choice = element(
      "select",
      { ariaLabel: `Version for ${name}:${alias}` },
      ...versions.map((one) => element("option", { value: one.version }, String(one.version))),
    );
    choice.value = version ?? versions.at(-1).version;
    const move = () => ask(path, { method: "PUT", headers: JSON_TYPE, body: JSON.stringify({ version: Number(choice.value) }) });
    const back = this.button("Roll back", `Roll back ${name}:${alias}`, () => ask(`${path}:rollback`, { method: "POST" }));
    back.disabled = previous.length === 0;
    const before = previous.length ? `, before: ${previous.join(", ")}` : "";
    const moving = this.button("Move", `Move ${name}:${alias}`, move);
    return [alias, version === null ? "nothing yet" : `${version}${before}`, element("span", { className: "line" }, choice, moving, back)];
  }

  /** Return a button that changes something, says what came of it, and shows the new state. */
  button(text, label, change, done = null) {
    const button = element("button", { type: "button", ariaLabel: label }, text);
    button.addEventListener("click", async () => {
      button.disabled = true;
      say(this.status, `${label} …`);
      try {
        const answer = await (await change()).json();
        say(this.status, done ?? aliasWords(answer));
      } catch (error) {
        say(this.status, error.message, true);
      }
      await this.show();
    });
    return button;
  }
}

function aliasWords({ model, alias, version, served }) {
  const where = served ? "and is served." : "in the registry; this service does not follow the alias.";
  return `${model}:${alias} points at version ${version} ${where}`;
}

function modelPath(name) {
  return `admin/v1/models/${encodeURIComponent(name)}`;
}

export function table(heads, rows) {
  const head = heads.map((name) => element("th", { scope: "col" }, name));
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))))),
  );
}
