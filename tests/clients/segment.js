// Segments one picture and streams three frames, as a program in Node.js would:
//   node segment.js HOST:PORT PROTO_FILE PICTURE
const fs = require("fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, contract, picture] = process.argv.slice(2);
const definition = loader.loadSync(contract, { longs: Number, enums: String, defaults: true, oneofs: true });
const { Segmentation } = grpc.loadPackageDefinition(definition).segmentation.v1;
const client = new Segmentation(address, grpc.credentials.createInsecure());
const image = { data: fs.readFileSync(picture), encoding: "ENCODED" };
const deadline = () => new Date(Date.now() + 60_000);

function fail(error) {
  console.error(error.message);
  process.exit(1);
}

function segment() {
  return new Promise((resolve) => {
    client.segment({ image, mask: "PNG" }, { deadline: deadline() }, (error, answer) => {
      if (error) fail(error);
      resolve({ model: answer.model, width: answer.mask.width, png: answer.mask.data.toString("base64") });
    });
  });
}

function stream() {
  return new Promise((resolve) => {
    const call = client.segmentStream({ deadline: deadline() });
    const answers = [];
    call.on("data", (answer) => {
      answers.push(answer.kind === "result" ? answer.result.seq : answer.kind);
    });
    call.on("error", fail);
    call.on("end", () => resolve(answers));
    call.write({ open: { policy: "BLOCK", mask: "RAW" } });
    for (const seq of [1, 2, 3]) call.write({ frame: { seq, image } });
    call.end();
  });
}

(async () => {
  console.log(JSON.stringify({ segment: await segment(), stream: await stream() }));
  client.close();
})();
