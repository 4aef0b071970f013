// @huggingface/inference: a picture, parameters, errors.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { InferenceClient } from "@huggingface/inference";

const model = process.env.CLIENTS_MODEL;
const endpointUrl = `${process.env.CLIENTS_URL}/hf/${model}`;
const inputs = new Blob([await readFile(process.env.CLIENTS_PICTURE)]);
const client = new InferenceClient("unused");

const answer = await client.imageSegmentation({ endpointUrl, inputs });
const labels = answer.map((one) => one.label);
assert.ok(labels.includes("road") && labels.includes("building"), labels.join());
for (const one of answer) {
  assert.ok(one.score > 0 && one.score <= 1);
  const png = Buffer.from(one.mask, "base64");
  assert.deepEqual([png.readUInt32BE(16), png.readUInt32BE(20)], [640, 360]);
}

const sure = await client.imageSegmentation({ endpointUrl, inputs, parameters: { threshold: 0.9 } });
assert.ok(sure.length < answer.length && sure.every((one) => one.score >= 0.9));

await assert.rejects(
  client.imageSegmentation({ endpointUrl, inputs, parameters: { subtask: "panoptic" } }),
  /semantic: one mask for each class/,
);
await assert.rejects(
  client.imageSegmentation({ endpointUrl: endpointUrl.replace(model, "none"), inputs }),
  /none/,
);
