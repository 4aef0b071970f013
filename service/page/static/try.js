// The page "Try it": a picture in, its mask over it.

import { ask, inWords, labelsOf, segmentPath } from "./api.js";
import { byId, element, percent, say, slider } from "./dom.js";
import { Legend } from "./legend.js";
import { title } from "./names.js";
import { showSnippets } from "./snippets.js";
import { showTiming } from "./timing.js";
import { countsOf, Viewer } from "./viewer.js";
import { openCamera } from "./webcam.js";

const EXAMPLES = ["avenue", "crossing", "high-street"];
const MAX_BYTES = 20 * 1024 * 1024;

export class TryPage {
  constructor() {
    this.status = byId("status");
    this.viewer = new Viewer({
      stage: byId("stage"),
      picture: byId("picture"),
      mask: byId("mask"),
      second: byId("second"),
      line: byId("curtain-line"),
    });
    this.legend = new Legend(byId("legend"), byId("all-classes"), (hidden, highlighted) => {
      Object.assign(this.viewer, { hidden, highlighted });
      this.viewer.draw();
    });
    this.takePictures();
    this.takeSettings();
    this.takePointer();
    for (const button of document.querySelectorAll("[data-download]")) {
      button.addEventListener("click", () => this.download(button.dataset.download));
    }
  }

  /** Fill the choices; models is what the service serves, the default first. */
  setModels(models) {
    this.models = models;
    const options = () => models.map((model, i) => element("option", { value: i }, title(model)));
    byId("model").replaceChildren(...options());
    byId("compare").replaceChildren(element("option", { value: "" }, "nothing"), ...options());
    this.modelChanged();
  }

  get model() {
    return this.models[Number(byId("model").value)];
  }

  get compared() {
    const value = byId("compare").value;
    return value === "" ? null : this.models[Number(value)];
  }

  modelChanged() {
    this.legend.show(this.model.classes, null);
    showSnippets(byId("snippets"), this.model, document.baseURI, this.status);
    if (this.file) this.segment();
  }

  // --- where pictures come from

  takePictures() {
    const stage = byId("stage");
    byId("file").addEventListener("change", ({ target }) => {
      if (target.files[0]) this.open(target.files[0]);
      target.value = "";
    });
    for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
      stage.addEventListener(name, (event) => {
        event.preventDefault();
        stage.classList.toggle("over", isOver);
      });
    }
    stage.addEventListener("drop", ({ dataTransfer }) => this.openFirst(dataTransfer.files));
    document.addEventListener("paste", ({ clipboardData }) => {
      if (!byId("page-try").hidden && clipboardData.files.length) this.openFirst(clipboardData.files);
    });
    byId("snapshot").addEventListener("click", () => this.snapshot());
    byId("examples").replaceChildren(
      ...EXAMPLES.map((name) => {
        const button = element(
          "button",
          { type: "button", ariaLabel: `Example: ${name}` },
          element("img", { src: `page/thumbnails/${name}.jpg`, alt: "" }),
        );
        button.addEventListener("click", () => this.openExample(name));
        return button;
      }),
    );
  }

  openFirst(files) {
    const picture = [...files].find((file) => file.type.startsWith("image/"));
    if (picture) this.open(picture);
    else say(this.status, "That is no picture. JPEG, PNG and WebP are read.", true);
  }

  async openExample(name) {
    try {
      await this.open(await (await ask(`page/examples/${name}.jpg`)).blob());
    } catch (error) {
      this.fail(error);
    }
  }

  async snapshot() {
    let stream;
    try {
      stream = await openCamera();
      const video = element("video", { srcObject: stream, muted: true, playsInline: true });
      await video.play();
      const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      await this.open(await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92)));
    } catch (error) {
      say(this.status, error.message, true);
    } finally {
      for (const track of stream?.getTracks() ?? []) track.stop();
    }
  }

  async open(file) {
    if (file.size > MAX_BYTES) {
      return say(this.status, `The picture has ${(file.size / 2 ** 20).toFixed(0)} MiB; the service takes 20.`, true);
    }
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      return say(this.status, "The browser cannot read this picture. JPEG, PNG and WebP are read.", true);
    }
    this.file = file;
    this.viewer.show(bitmap);
    bitmap.close();
    byId("stage").classList.add("filled");
    byId("stage-hint").hidden = true;
    await this.segment();
  }

  // --- what the service says

  async segment() {
    this.running?.abort();
    const running = (this.running = new AbortController());
    const [model, compared] = [this.model, this.compared];
    say(this.status, "The service is working on the picture …");
    this.enableDownloads(false);
    try {
      const [first, other] = await Promise.all(
        [model, compared].map((one) => one && labelsOf(this.file, one, running.signal)),
      );
      if (running !== this.running) return;
      this.show(model, first, other);
    } catch (error) {
      if (running === this.running && error.name !== "AbortError") this.fail(error);
    }
  }

  show(model, first, other) {
    const colors = new Map(model.classes.map(({ id, color }) => [id, color]));
    const counts = countsOf(first.labels);
    this.viewer.setAnswers(first, other, colors);
    this.viewer.setOpacity(Number(byId("opacity").value) / 100);
    this.showThreshold(Number(byId("threshold").value));
    this.legend.show(model.classes, (id) => counts[id] / first.labels.length);
    showTiming(first.stages);
    this.showDisagreement();
    this.enableDownloads(true);
    byId("stage").setAttribute("aria-label", this.spoken(model, counts, first.labels.length));
    say(this.status, `${first.width} × ${first.height}, answered by ${title(model)}.`);
  }

  spoken(model, counts, pixels) {
    const largest = [...model.classes].sort((a, b) => counts[b.id] - counts[a.id]).slice(0, 4);
    const shares = largest.filter(({ id }) => counts[id]).map(({ id, name }) => `${name} ${percent(counts[id] / pixels)}`);
    return `Picture with its mask: ${shares.join(", ")}`;
  }

  showDisagreement() {
    const share = this.viewer.disagreement();
    byId("difference-label").hidden = share === null;
    byId("difference-share").textContent = share === null ? "" : `(${percent(share)} of the pixels)`;
  }

  enableDownloads(isEnabled) {
    for (const button of document.querySelectorAll("[data-download]")) button.disabled = !isEnabled;
  }

  async download(kind) {
    const forms = {
      mask: ["output=labels", "image/png", "mask.png"],
      overlay: [`output=overlay&alpha=${Number(byId("opacity").value) / 100}`, "image/jpeg", "overlay.jpg"],
      json: ["mask=coco_rle", "application/json", "segmentation.json"],
    };
    const [query, accept, name] = forms[kind];
    try {
      const options = { method: "POST", body: this.file, headers: { Accept: accept } };
      const content = await (await ask(`${segmentPath(this.model)}?${query}`, options)).blob();
      const link = element("a", { href: URL.createObjectURL(content), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      this.fail(error);
    }
  }

  fail(error) {
    say(this.status, inWords(error), true);
  }

  // --- how it is shown

  takeSettings() {
    slider(byId("opacity"), "opacity", 60, (value) => {
      byId("opacity-value").textContent = `${value} %`;
      this.viewer.setOpacity(value / 100);
    });
    slider(byId("curtain"), "curtain", 50, (value) => this.viewer.setCurtain(value));
    slider(byId("threshold"), "threshold", 0, (value) => {
      this.viewer.setThreshold(Math.round((value / 100) * 255));
      this.showThreshold(value);
    });
    this.takeCurtainLine();
    byId("difference").addEventListener("change", ({ target }) => {
      this.viewer.differs = target.checked;
      this.viewer.draw();
      this.viewer.setOpacity(Number(byId("opacity").value) / 100);
      this.explainCurtain();
    });
    byId("model").addEventListener("change", () => this.modelChanged());
    byId("compare").addEventListener("change", () => {
      this.explainCurtain();
      if (this.file) this.segment();
    });
    this.explainCurtain();
    this.takeHideKey();
  }

  showThreshold(value) {
    const share = value ? this.viewer.shareBelow() : null;
    byId("threshold-value").textContent = share === null ? `${value} %` : `${value} %, ${percent(share)} of the pixels are below`;
  }

  explainCurtain() {
    const right = this.compared ? "the mask of the other model" : "the picture alone";
    const isMap = this.compared !== null && byId("difference").checked;
    byId("curtain").disabled = isMap;
    byId("curtain-hint").textContent = isMap
      ? "Magenta marks the pixels on which the two disagree."
      : `Left of the line is the mask, right of it ${right}. The line can be dragged.`;
  }

  takeCurtainLine() {
    const line = byId("curtain-line");
    const curtain = byId("curtain");
    line.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      line.setPointerCapture(event.pointerId);
    });
    line.addEventListener("pointermove", ({ pointerId, clientX }) => {
      if (!line.hasPointerCapture(pointerId)) return;
      const { left, width } = byId("stage").getBoundingClientRect();
      curtain.value = (100 * (clientX - left)) / width;
      curtain.dispatchEvent(new Event("input"));
    });
    line.addEventListener("pointerup", () => curtain.dispatchEvent(new Event("change")));
  }

  takeHideKey() {
    for (const [name, isHidden] of [["keydown", true], ["keyup", false]]) {
      document.addEventListener(name, (event) => {
        const isTyping = event.target.matches?.("input[type=password], select, textarea");
        if (event.key.toLowerCase() === "h" && !isTyping && !event.ctrlKey && !event.metaKey) this.viewer.hide(isHidden);
      });
    }
    window.addEventListener("blur", () => this.viewer.hide(false));
  }

  takePointer() {
    const readout = byId("readout");
    byId("stage").addEventListener("pointermove", ({ clientX, clientY }) => {
      const spot = this.viewer.at(clientX, clientY);
      readout.textContent = spot ? this.described(spot) : "\u00a0";
    });
    byId("stage").addEventListener("pointerleave", () => (readout.textContent = "\u00a0"));
  }

  described({ x, y, first, other }) {
    const second = other === null || other.id === first.id ? "" : ` | ${described(this.compared, other)}`;
    return `${x}, ${y}: ${described(this.model, first)}${second}`;
  }
}

function described(model, { id, confidence }) {
  const name = model.classes.find((one) => one.id === id)?.name ?? "no class";
  return `${name}, ${(100 * confidence).toFixed(0)} % sure`;
}
