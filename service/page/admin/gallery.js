// Pictures of an evaluation: each with its truth, the answer of the model, and where the two differ.

import { ask, bytesOf, inWords } from "../api.js";
import { element, say } from "../dom.js";

const AT_ONCE = 3;
const VIEWS = [
  ["picture", "image/jpeg"],
  ["truth", "image/png"],
  ["answer", "image/png"],
  ["difference", "image/png"],
];

export class Gallery {
  /** @param {string} path of the evaluation */
  constructor(path) {
    this.path = path;
    this.root = element("div", { className: "gallery" });
    this.addresses = [];
  }

  /**
   * Show pictures, a few at a time.
   * @param {string} title
   * @param {{index: number, name: string, words: string}[]} entries in the order of the gallery
   * @param {?[number, number]} cell class ids of truth and answer whose pixels are marked
   */
  open(title, entries, cell = null) {
    this.close();
    Object.assign(this, { entries, cell, loading: new AbortController() });
    this.status = element("p", { className: "status", role: "status" });
    this.more = element("button", { type: "button" });
    this.more.addEventListener("click", () => this.showMore());
    this.shown = element("div");
    const hint = cell
      ? "In the difference, pixels of this cell are magenta and other mistakes yellow."
      : "In the difference, mistakes are magenta.";
    this.root.replaceChildren(element("h3", {}, title), element("p", { className: "hint" }, hint), this.shown, this.status, this.more);
    this.root.scrollIntoView({ block: "nearest" });
    return this.showMore();
  }

  close() {
    this.loading?.abort();
    for (const address of this.addresses) URL.revokeObjectURL(address);
    this.addresses = [];
    this.root.replaceChildren();
  }

  async showMore() {
    const { loading } = this;
    this.more.hidden = true;
    try {
      for (const entry of this.entries.splice(0, AT_ONCE)) {
        say(this.status, `The model answers ${entry.name} once more …`);
        const answer = await ask(this.address(entry), { signal: loading.signal });
        this.shown.append(this.row(entry, await answer.json()));
      }
      say(this.status, "");
      this.more.hidden = this.entries.length === 0;
      this.more.textContent = `Show more, ${this.entries.length} are left`;
    } catch (error) {
      if (error.name !== "AbortError" && loading === this.loading) say(this.status, inWords(error), true);
    }
  }

  address({ index }) {
    return `${this.path}/pictures/${index}${this.cell ? `?cell=${this.cell.join(",")}` : ""}`;
  }

  row({ name, words }, document) {
    const note = document.as_counted ? "" : ` Answered now by ${document.engine}, it scores otherwise than in the report.`;
    const figures = VIEWS.map(([view, type]) => {
      const src = URL.createObjectURL(new Blob([bytesOf(document[view])], { type }));
      this.addresses.push(src);
      return element("figure", {}, element("img", { src, alt: `${view} of ${name}` }), element("figcaption", {}, view));
    });
    return element("div", {}, element("h4", {}, name), element("p", {}, `${words}${note}`), element("div", { className: "views" }, ...figures));
  }
}
