// The list of classes: share of the picture, shown or hidden, alone, highlighted under the pointer.

import { element, percent, swatch } from "./dom.js";

export class Legend {
  /**
   * @param {HTMLElement} list
   * @param {HTMLButtonElement} reset shows all classes again
   * @param {(hidden: Set<number>, highlighted: number | null) => void} changed
   */
  constructor(list, reset, changed) {
    Object.assign(this, { list, reset, changed });
    this.hidden = new Set();
    this.highlighted = null;
    this.reset.addEventListener("click", () => this.apply(new Set()));
  }

  /** Show classes [{id, name, color}] with the share of each, 0..1; without shares before there is an answer. */
  show(classes, shares) {
    this.classes = classes;
    const order = [...classes].sort((a, b) => (shares ? shares(b.id) - shares(a.id) : 0) || a.id - b.id);
    this.list.replaceChildren(...order.map((one) => this.row(one, shares ? shares(one.id) : null)));
    this.mark();
  }

  row({ id, name, color }, share) {
    const box = element("input", { type: "checkbox", checked: !this.hidden.has(id), dataset: { id } });
    box.addEventListener("change", () => this.toggle(id));
    const alone = element("button", { type: "button", textContent: "only", ariaLabel: `Show only ${name}` });
    alone.addEventListener("click", () => this.only(id));
    const row = element(
      "li",
      { className: share === 0 ? "absent" : "" },
      element("label", {}, box, swatch(color), element("span", { className: "name" }, name)),
      element("span", { className: "share" }, share === null ? "" : percent(share)),
      alone,
    );
    row.addEventListener("pointerenter", () => this.highlight(this.hidden.has(id) ? null : id));
    row.addEventListener("pointerleave", () => this.highlight(null));
    return row;
  }

  toggle(id) {
    const hidden = new Set(this.hidden);
    if (!hidden.delete(id)) hidden.add(id);
    this.apply(hidden);
  }

  only(id) {
    this.apply(new Set(this.classes.map((one) => one.id).filter((other) => other !== id)));
  }

  highlight(id) {
    if (this.highlighted === id) return;
    this.highlighted = id;
    this.changed(this.hidden, id);
  }

  apply(hidden) {
    this.hidden = hidden;
    this.highlighted = null;
    this.mark();
    this.changed(hidden, null);
  }

  mark() {
    for (const box of this.list.querySelectorAll("input")) box.checked = !this.hidden.has(Number(box.dataset.id));
    this.reset.hidden = this.hidden.size === 0;
  }
}
