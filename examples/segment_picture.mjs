// Sends one picture to the service over HTTP, writes its mask and prints the share of each class.
//
//     node examples/segment_picture.mjs photo.jpg mask.png [http://127.0.0.1:8000]
//
// It needs Node.js 18 or newer and no packages, and a running service (`bisenet serve`).
import { readFile, writeFile } from "node:fs/promises";

/** Segments a picture. Throws an Error that holds the service's code, its explanation and the request id. */
async function segment(url, picture) {
  const response = await fetch(`${url}/v1/segment`, {
    method: "POST",
    headers: { Accept: "application/json", "X-Request-Timeout-Ms": "30000" },
    body: picture,
    signal: AbortSignal.timeout(30_000),
  });
  const answer = await response.json();
  if (response.ok) return answer;
  const retry = response.headers.get("Retry-After");
  const advice = retry ? `; try again in ${retry} s` : "";
  throw new Error(`${answer.code}: ${answer.detail}${advice} (request ${answer.request_id})`);
}

const [picture, mask, url = "http://127.0.0.1:8000"] = process.argv.slice(2);
if (!mask) {
  console.error("usage: node segment_picture.mjs PICTURE MASK.png [URL]");
  process.exit(2);
}
try {
  const answer = await segment(url, await readFile(picture));
  await writeFile(mask, Buffer.from(answer.mask.data, "base64"));
  console.log(`${answer.model}@${answer.version}: ${answer.width}x${answer.height} pixels`);
  const classes = answer.classes.filter((one) => one.pixels > 0).sort((a, b) => b.pixels - a.pixels);
  for (const { name, fraction } of classes) {
    console.log(`${name.padEnd(16)} ${(100 * fraction).toFixed(1).padStart(5)}%`);
  }
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exit(1);
}
