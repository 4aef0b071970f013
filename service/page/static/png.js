// Reads the 8-bit PNGs of the service exactly. A canvas would give colours in place of class ids.

const SIGNATURE = 8;
const CHUNK = 12; // length, kind and checksum
const NONE = 0;
const UP = 2;

/** Return {values, width, height} of a PNG with one byte a pixel whose rows have the filter None or Up. */
export async function readPng(png) {
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength);
  const parts = [];
  let [width, height] = [0, 0];
  for (let at = SIGNATURE; at < png.length; at += CHUNK + view.getUint32(at)) {
    const kind = String.fromCharCode(...png.subarray(at + 4, at + 8));
    if (kind === "IHDR") [width, height] = [view.getUint32(at + 8), view.getUint32(at + 12)];
    if (kind === "IDAT") parts.push(png.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const inflated = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const lines = new Uint8Array(await new Response(inflated).arrayBuffer());
  return { values: unfiltered(lines, width, height), width, height };
}

function unfiltered(lines, width, height) {
  const values = new Uint8Array(width * height);
  for (let y = 0, to = 0; y < height; y++, to += width) {
    const from = y * (width + 1);
    const filter = lines[from];
    if (filter !== NONE && filter !== UP) throw new Error(`no PNG of the service: filter ${filter}`);
    values.set(lines.subarray(from + 1, from + 1 + width), to);
    if (filter === UP && y) for (let i = to; i < to + width; i++) values[i] += values[i - width];
  }
  return values;
}
