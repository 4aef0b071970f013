// A client whose paths, parameters and answers are typed by the generated schema.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const client = createClient<paths>({ baseUrl: process.env.CLIENTS_URL });
const picture = (await readFile(process.env.CLIENTS_PICTURE!)).toString("base64");

const { data: models } = await client.GET("/v1/models");
assert.equal(models!.models[0]!.name, process.env.CLIENTS_MODEL);

const { data } = await client.POST("/v1/segment", {
  params: { query: { mask: "none", confidence: "mean" } },
  body: { image: picture },
  headers: { Accept: "application/json" },
});
const answer = data as components["schemas"]["SegmentationDocument"]; // Accept says so
assert.deepEqual([answer.width, answer.height], [640, 360]);
const road = answer.classes.find((share) => share.name === "road")!;
assert.ok(road.pixels > 0 && road.confidence! > 0);

const { data: segments } = await client.POST("/hf/{model}", {
  params: { path: { model: "camvid" } },
  body: { inputs: picture, parameters: { threshold: 0.5 } },
});
assert.ok(segments!.some((segment) => segment.label === "road"));

const { error, response } = await client.POST("/hf/{model}", {
  params: { path: { model: "none" } },
  body: { inputs: picture },
});
assert.equal(response.status, 404);
assert.equal((error as { code: string }).code, "model_not_found");
