// The page "Camera": the browser's camera in, its masks over it, as fast as the service answers.

import { streamAddress, streamProtocols } from "./api.js";
import { byId, element, say, slider } from "./dom.js";
import { title } from "./names.js";
import { openCamera } from "./webcam.js";
import { frameMessage, openMessage, readAnswer } from "./wire.js";

const MAX_SIDE = 1280;
const JPEG_QUALITY = 0.85;
const MAX_IN_FLIGHT = 2;
const MAX_AGE_MS = 5000;
const MAX_UNANSWERED = 12;
const WINDOW_MS = 2000;
const TELL_MS = 250;
const DROP_WORDS = { queue_full: "would wait too long" };

export class CameraPage {
  constructor() {
    this.status = byId("camera-status");
    this.capture = element("canvas");
    byId("camera-start").addEventListener("click", () => (this.run ? this.run.stop() : this.start()));
    slider(byId("camera-opacity"), "opacity", 60, (value) => (byId("camera-mask").style.opacity = value / 100));
  }

  /** Fill the choice; models is what the service serves, the default first. */
  setModels(models) {
    this.models = models;
    byId("camera-model").replaceChildren(...models.map((model, i) => element("option", { value: i }, title(model))));
    byId("camera-start").disabled = models.length === 0;
  }

  /** Stop when another page is shown. */
  leave() {
    this.run?.stop();
  }

  async start() {
    const button = byId("camera-start");
    button.disabled = true;
    try {
      const stream = await openCamera({ width: { ideal: MAX_SIDE }, height: { ideal: 720 } });
      this.run = new CameraRun(stream, this.models[Number(byId("camera-model").value)], this.capture);
      button.textContent = "Stop";
      button.disabled = false;
      say(this.status, "The camera is on.");
      const end = await this.run.finished;
      say(this.status, end.message, end.isBad);
    } catch (error) {
      say(this.status, error.message, true);
    } finally {
      this.run = null;
      button.disabled = false;
      button.textContent = "Start the camera";
    }
  }
}

/** One conversation with the service, from its start to its end. */
class CameraRun {
  constructor(stream, model, capture) {
    Object.assign(this, { stream, capture, seq: 0, sent: new Map(), dropped: new Map(), shown: [], skipped: 0 });
    this.picture = byId("camera-picture");
    this.mask = byId("camera-mask");
    this.answered = 0;
    this.isEnding = false;
    this.finished = new Promise((done) => (this.finish = done));
    this.video = element("video", { srcObject: stream, muted: true, playsInline: true });
    this.socket = new WebSocket(streamAddress(), streamProtocols());
    this.socket.binaryType = "arraybuffer";
    this.socket.addEventListener("open", () => this.begin(model));
    this.socket.addEventListener("message", ({ data }) => this.read(readAnswer(data)));
    this.socket.addEventListener("close", (event) => this.end(event));
    for (const track of stream.getTracks()) track.addEventListener("ended", () => this.stop());
  }

  async begin({ name, version, default: isDefault }) {
    const model = isDefault ? name : `${name}@${version}`;
    this.socket.send(openMessage({ model, maxInFlight: MAX_IN_FLIGHT, maxFrameAgeMs: MAX_AGE_MS }));
    this.telling = setInterval(() => this.tell(), TELL_MS);
    await this.video.play();
    this.nextFrame();
  }

  nextFrame() {
    if (this.isEnding) return;
    this.video.requestVideoFrameCallback(() => {
      this.nextFrame();
      this.send();
    });
  }

  async send() {
    // The service replaces a waiting frame by a newer one; what the network cannot carry is not even sent.
    const isBehind = this.socket.bufferedAmount > 0 || this.sent.size >= MAX_UNANSWERED || this.isEncoding;
    if (this.isEnding || this.socket.readyState !== WebSocket.OPEN) return;
    if (isBehind) {
      this.skipped++;
      return;
    }
    this.isEncoding = true;
    const takenMs = performance.now();
    const { videoWidth, videoHeight } = this.video;
    const scale = Math.min(1, MAX_SIDE / Math.max(videoWidth, videoHeight));
    Object.assign(this.capture, { width: Math.round(videoWidth * scale), height: Math.round(videoHeight * scale) });
    this.capture.getContext("2d").drawImage(this.video, 0, 0, this.capture.width, this.capture.height);
    const [picture, frame] = await Promise.all([
      new Promise((done) => this.capture.toBlob(done, "image/jpeg", JPEG_QUALITY)),
      createImageBitmap(this.capture),
    ]);
    this.isEncoding = false;
    if (this.isEnding) return frame.close();
    const seq = ++this.seq;
    this.sent.set(seq, { takenMs, frame });
    this.socket.send(frameMessage(seq, picture));
  }

  read(answer) {
    if (answer.kind === "result") {
      this.show(answer);
    } else if (answer.kind === "dropped") {
      this.count(answer.reason, answer.count);
      for (const seq of this.sent.keys()) if (seq <= answer.last) this.forget(seq);
    } else if (answer.kind === "error") {
      this.count(answer.code, 1);
      this.forget(answer.seq);
    }
  }

  async show({ seq, png, timings }) {
    const { frame, takenMs } = this.sent.get(seq);
    this.sent.delete(seq);
    this.answered++;
    const mask = await createImageBitmap(new Blob([png], { type: "image/png" }));
    for (const canvas of [this.picture, this.mask]) {
      Object.assign(canvas, { width: frame.width, height: frame.height, hidden: false });
    }
    this.picture.getContext("2d").drawImage(frame, 0, 0);
    this.mask.getContext("2d").drawImage(mask, 0, 0);
    byId("camera-hint").hidden = true;
    for (const bitmap of [frame, mask]) bitmap.close();
    const nowMs = performance.now();
    this.shown.push({ nowMs, ageMs: nowMs - takenMs });
    this.inferMs = Object.fromEntries(timings).infer;
  }

  count(reason, number) {
    this.dropped.set(reason, (this.dropped.get(reason) ?? 0) + number);
  }

  forget(seq) {
    this.sent.get(seq)?.frame.close();
    this.sent.delete(seq);
  }

  tell() {
    const nowMs = performance.now();
    this.shown = this.shown.filter((one) => nowMs - one.nowMs < WINDOW_MS);
    const ages = this.shown.map((one) => one.ageMs).sort((a, b) => a - b);
    const age = ages[Math.floor(ages.length / 2)];
    byId("camera-fps").textContent = (this.shown.length / (WINDOW_MS / 1000)).toFixed(1);
    byId("camera-age").textContent = age === undefined ? "none" : `${age.toFixed(0)} ms`;
    byId("camera-infer").textContent = this.inferMs === undefined ? "none" : `${this.inferMs.toFixed(0)} ms`;
    byId("camera-answered").textContent = `${this.answered} of ${this.seq}`;
    const reasons = [...this.dropped].map(([reason, number]) => `${number} ${DROP_WORDS[reason] ?? reason}`);
    if (this.skipped) reasons.push(`${this.skipped} not sent`);
    byId("camera-drops").textContent = reasons.join(", ") || "none";
  }

  /** Say that no frame will come any more; the service answers what it has and closes. */
  stop() {
    if (this.isEnding) return;
    this.isEnding = true;
    this.endCamera();
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send("end");
    else this.socket.close();
  }

  end({ code, reason }) {
    this.isEnding = true;
    this.endCamera();
    clearInterval(this.telling);
    this.tell();
    for (const seq of [...this.sent.keys()]) this.forget(seq);
    this.finish(closeWords(code, reason));
  }

  endCamera() {
    for (const track of this.stream.getTracks()) track.stop();
  }
}

function closeWords(code, reason) {
  if (code === 1000) return { message: "The camera is off; every frame is accounted for.", isBad: false };
  const said = reason.split(": ").slice(1).join(": ");
  if (said) return { message: `The service ended the stream: ${said}.`, isBad: true };
  return {
    message: "The stream ended. The service cannot be reached, refuses this page, or has too many streams.",
    isBad: true,
  };
}
