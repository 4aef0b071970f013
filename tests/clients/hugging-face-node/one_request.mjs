// Ask a service for one picture after the other until it refuses; print the client's error.
import { readFile } from "node:fs/promises";
import { InferenceClient } from "@huggingface/inference";

const folder = process.env.CLIENT_SITE;
const { http } = JSON.parse(await readFile(`${folder}/site.json`));
const inputs = new Blob([await readFile(`${folder}/picture.jpg`)]);
const client = new InferenceClient("unused");

console.log(JSON.stringify({ ready: null }));
try {
  for (let request = 0; request < 20; request++) {
    // By default this client asks again after a 503, until it finds nobody who could tell why.
    await client.imageSegmentation({ endpointUrl: `http://${http}/hf/pooling`, inputs }, { retry_on_error: false });
  }
} catch (error) {
  const text = `${error.message} ${JSON.stringify(error.httpResponse?.body ?? null)}`;
  console.log(JSON.stringify({ error: error.constructor.name, text }));
}
