// Draws a picture with one or two masks over it. The labels are sampled once to the size on the screen, so that a
// changed class costs one pass over the pixels that are seen, and opacity and curtain cost the script nothing.

const MIN_SIDE = 640;
const MAX_SIDE = 1600;
const DISAGREE = [255, 0, 200];
const UNPAINTED = 255; // no class has this id
const STRIPE_PERIOD = 8; // of hatched pixels, a power of two
const STRIPE_WIDTH = 2;

export class Viewer {
  constructor({ stage, picture, mask, second, line }) {
    Object.assign(this, { stage, picture, mask, second, line });
    this.hidden = new Set();
    this.highlighted = null;
    this.curtain = 50;
    this.differs = false;
    this.threshold = 0;
    this.clear();
  }

  clear() {
    this.size = null;
    this.first = null;
    this.other = null;
    for (const canvas of [this.picture, this.mask, this.second]) canvas.hidden = true;
    this.line.hidden = true;
  }

  /** Show a picture without masks. */
  show(bitmap) {
    this.clear();
    const seen = Math.max(MIN_SIDE, this.stage.clientWidth * devicePixelRatio);
    const scale = Math.min(1, Math.min(MAX_SIDE, seen) / Math.max(bitmap.width, bitmap.height));
    this.size = [Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale))];
    for (const canvas of [this.picture, this.mask, this.second]) [canvas.width, canvas.height] = this.size;
    this.picture.getContext("2d").drawImage(bitmap, 0, 0, ...this.size);
    this.picture.hidden = false;
  }

  /** Set the answers: {labels, confidence, width, height} each; other is null where nothing is compared. */
  setAnswers(first, other, colors) {
    this.colors = colors;
    [this.first, this.other] = [first, other].map((answer) => answer && this.prepared(answer));
    this.hatch();
    this.draw();
  }

  prepared(answer) {
    const seen = this.sampled(answer.labels, answer);
    return { ...answer, seen, sure: this.sampled(answer.confidence, answer), sureCounts: countsOf(answer.confidence) };
  }

  /** Hatch the pixels whose confidence in 255ths is below a level. */
  setThreshold(level) {
    this.threshold = level;
    this.hatch();
    this.draw();
  }

  /** Return the share of the first answer's pixels whose confidence is below the threshold, or null. */
  shareBelow() {
    if (!this.first) return null;
    const below = this.first.sureCounts.subarray(0, this.threshold).reduce((sum, count) => sum + count, 0);
    return below / this.first.labels.length;
  }

  hatch() {
    for (const answer of [this.first, this.other]) if (answer) answer.shown = this.hatched(answer);
  }

  hatched({ seen, sure }) {
    if (!this.threshold) return seen;
    const shown = seen.slice();
    const [width, height] = this.size;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const isBetweenStripes = ((x + y) & (STRIPE_PERIOD - 1)) >= STRIPE_WIDTH;
        if (isBetweenStripes && sure[i] < this.threshold) shown[i] = UNPAINTED;
      }
    }
    return shown;
  }

  /** Return values of an answer at the pixels that are seen. */
  sampled(values, { width, height }) {
    const [w, h] = this.size;
    if (w === width && h === height) return values;
    const columns = Uint32Array.from({ length: w }, (_, x) => Math.floor(((x + 0.5) * width) / w));
    const seen = new Uint8Array(w * h);
    for (let y = 0, i = 0; y < h; y++) {
      const row = Math.floor(((y + 0.5) * height) / h) * width;
      for (let x = 0; x < w; x++) seen[i++] = values[row + columns[x]];
    }
    return seen;
  }

  /** Paint the masks anew; returns the milliseconds that it took. */
  draw() {
    if (!this.first) return 0;
    const began = performance.now();
    this.paint(this.mask, this.first.shown, this.palette());
    if (this.other) {
      if (this.differs) this.paintDifference();
      else this.paint(this.second, this.other.shown, this.palette());
    }
    this.mask.hidden = false;
    this.second.hidden = !this.other;
    this.place();
    return performance.now() - began;
  }

  palette() {
    const palette = new Uint32Array(256);
    for (const [id, [red, green, blue]] of this.colors) {
      const isShown = !this.hidden.has(id) && (this.highlighted === null || this.highlighted === id);
      if (isShown) palette[id] = pixel(red, green, blue);
    }
    return palette;
  }

  paint(canvas, labels, palette) {
    const image = (canvas.image ??= {});
    if (image.data?.width !== canvas.width || image.data?.height !== canvas.height) {
      image.data = new ImageData(canvas.width, canvas.height);
      image.pixels = new Uint32Array(image.data.data.buffer);
    }
    const pixels = image.pixels;
    for (let i = 0; i < pixels.length; i++) pixels[i] = palette[labels[i]];
    canvas.getContext("2d").putImageData(image.data, 0, 0);
  }

  paintDifference() {
    const { first, other, second } = this;
    const color = pixel(...DISAGREE);
    const marks = new Uint8Array(first.seen.length);
    for (let i = 0; i < marks.length; i++) marks[i] = first.seen[i] === other.seen[i] ? 0 : 1;
    this.paint(second, marks, Uint32Array.of(0, color));
  }

  /** Return the share of the picture's pixels in which the two answers differ, or null. */
  disagreement() {
    if (!this.other || this.other.labels.length !== this.first.labels.length) return null;
    const [a, b] = [this.first.labels, this.other.labels];
    let count = 0;
    for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) count++;
    return count / a.length;
  }

  setOpacity(opacity) {
    this.stage.style.setProperty("--mask-opacity", opacity);
    this.mask.style.opacity = opacity;
    this.second.style.opacity = this.differs ? 1 : opacity;
  }

  /** Left of the curtain is the mask; right of it the second mask, or the bare picture. */
  setCurtain(percent) {
    this.curtain = percent;
    this.place();
  }

  place() {
    const right = 100 - this.curtain;
    const covers = this.differs && this.other;
    this.mask.style.clipPath = covers ? "" : `inset(0 ${right}% 0 0)`;
    this.second.style.clipPath = covers ? "" : `inset(0 0 0 ${this.curtain}%)`;
    this.line.hidden = !this.first || covers || this.curtain === 0 || this.curtain === 100;
    this.line.style.left = `${this.curtain}%`;
  }

  hide(isHidden) {
    for (const canvas of [this.mask, this.second]) canvas.style.visibility = isHidden ? "hidden" : "";
  }

  /** Return {x, y, first, other} at a position of the screen, each answer as {id, confidence 0..1}; null outside. */
  at(clientX, clientY) {
    if (!this.first) return null;
    const box = this.picture.getBoundingClientRect();
    const [u, v] = [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
    if (u < 0 || v < 0 || u >= 1 || v >= 1) return null;
    const pick = (answer) => {
      const i = Math.floor(v * answer.height) * answer.width + Math.floor(u * answer.width);
      return { id: answer.labels[i], confidence: answer.confidence[i] / 255 };
    };
    return {
      x: Math.floor(u * this.first.width),
      y: Math.floor(v * this.first.height),
      first: pick(this.first),
      other: this.other ? pick(this.other) : null,
    };
  }
}

function pixel(red, green, blue) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // little-endian RGBA
}

/** Count the pixels of each class id. */
export function countsOf(labels) {
  const counts = new Uint32Array(256);
  for (let i = 0; i < labels.length; i++) counts[labels[i]]++;
  return counts;
}
