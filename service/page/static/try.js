// The page "Try it": a picture in, its mask over it.

import { ask, labelsOf, segmentPath, ServiceError } from "./api.js";
import { byId, element, percent, say, settings } from "./dom.js";
import { Legend } from "./legend.js";
import { title } from "./names.js";
import { showSnippets } from "./snippets.js";
import { showTiming } from "./timing.js";
import { countsOf, Viewer } from "./viewer.js";

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
    if (!navigator.mediaDevices) {
      return say(this.status, "The browser gives a page its camera only over HTTPS or on this machine.", true);
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      const video = element("video", { srcObject: stream, muted: true, playsInline: true });
      await video.play();
      const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      await this.open(await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92)));
    } catch (error) {
      say(this.status, `The camera gives no picture: ${error.message || error.name}.`, true);
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
    const id = error instanceof ServiceError && error.requestId ? ` (request ${error.requestId})` : "";
    say(this.status, `${error.message}${id}`, true);
  }

  // --- how it is shown

  takeSettings() {
    const opacity = byId("opacity");
    const curtain = byId("curtain");
    opacity.value = settings.read("opacity", 60);
    const applyOpacity = () => {
      byId("opacity-value").textContent = `${opacity.value} %`;
      this.viewer.setOpacity(Number(opacity.value) / 100);
    };
    opacity.addEventListener("input", applyOpacity);
    opacity.addEventListener("change", () => settings.write("opacity", Number(opacity.value)));
    curtain.addEventListener("input", () => this.viewer.setCurtain(Number(curtain.value)));
    byId("difference").addEventListener("change", ({ target }) => {
      this.viewer.differs = target.checked;
      this.viewer.draw();
      applyOpacity();
    });
    byId("model").addEventListener("change", () => this.modelChanged());
    byId("compare").addEventListener("change", () => {
      if (this.compared) curtain.value = 50;
      else curtain.value = 100;
      this.viewer.setCurtain(Number(curtain.value));
      if (this.file) this.segment();
    });
    for (const [name, isHidden] of [["keydown", true], ["keyup", false]]) {
      document.addEventListener(name, (event) => {
        const isTyping = event.target.matches?.("input[type=password], select, textarea");
        if (event.key.toLowerCase() === "h" && !isTyping && !event.ctrlKey && !event.metaKey) this.viewer.hide(isHidden);
      });
    }
    window.addEventListener("blur", () => this.viewer.hide(false));
    applyOpacity();
  }

  takePointer() {
    const readout = byId("readout");
    byId("stage").addEventListener("pointermove", ({ clientX, clientY }) => {
      const spot = this.viewer.at(clientX, clientY);
      readout.textContent = spot ? this.described(spot) : "\u00a0";
    });
    byId("stage").addEventListener("pointerleave", () => (readout.textContent = "\u00a0"));
  }

  described({ x, y, id, other }) {
    const second = other === null || other === id ? "" : ` | ${className(this.compared, other)}`;
    return `${x}, ${y}: ${className(this.model, id)}${second}`;
  }
}

function className(model, id) {
  return model.classes.find((one) => one.id === id)?.name ?? "no class";
}
