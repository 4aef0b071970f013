// The request of the page as lines that repeat it elsewhere.

import { hasKey } from "./api.js";
import { element, say } from "./dom.js";

const INDENT = "    ";
const GRPC_PORT = 8001;
const KEY = "YOUR_KEY";

export function showSnippets(target, model, origin, status) {
  const name = model.default ? model.name : `${model.name}@${model.version}`;
  const texts = {
    curl: curlLine(model, origin),
    Python: clientLines("HttpClient", "http_client", [quoted(rootOf(origin)), ...keyArgument()], name),
    [`gRPC in Python (port ${GRPC_PORT} unless set otherwise)`]: clientLines(
      "GrpcClient",
      "grpc_client",
      [quoted(grpcAddress(origin)), ...keyArgument(), ...tlsArgument(origin)],
      name,
    ),
    "gRPC, for a film": filmLine(name, origin),
  };
  target.replaceChildren(...Object.entries(texts).flatMap(([title, text]) => snippet(title, text, status)));
}

function curlLine({ name, version, default: isDefault }, origin) {
  const versioned = isDefault ? name : `${name}/versions/${version}`;
  const key = hasKey() ? ` -H "Authorization: Bearer ${KEY}"` : "";
  return `curl --fail --data-binary @photo.jpg${key} ${new URL(`v1/models/${versioned}:segment`, origin).href} -o mask.png`;
}

function clientLines(client, module, args, model) {
  return [
    `from service.client.${module} import ${client}`,
    "",
    `with ${client}(${args.join(", ")}) as client:`,
    `${INDENT}answer = client.segment(open("photo.jpg", "rb").read(), model="${model}")`,
    "print(answer.mask.labels_HW().shape)",
  ].join("\n");
}

function filmLine(model, origin) {
  const tls = isTls(origin) ? " --tls" : "";
  const key = hasKey() ? " --key-file KEY_FILE" : "";
  return `bisenet stream film.mp4 --server ${grpcAddress(origin)} --model ${model} --out overlay.mp4${tls}${key}`;
}

function rootOf(origin) {
  return new URL(".", origin).href.replace(/\/$/, "");
}

function grpcAddress(origin) {
  return `${new URL(origin).hostname}:${GRPC_PORT}`;
}

function isTls(origin) {
  return new URL(origin).protocol === "https:";
}

function keyArgument() {
  return hasKey() ? [`key=${quoted(KEY)}`] : [];
}

function tlsArgument(origin) {
  return isTls(origin) ? ["tls=True"] : [];
}

function quoted(text) {
  return `"${text}"`;
}

function snippet(name, text, status) {
  const copy = element("button", { type: "button", textContent: "Copy", ariaLabel: `Copy the ${name} lines` });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      say(status, `The ${name} lines are in the clipboard.`);
    } catch {
      say(status, "The browser does not let the page write to the clipboard: select the lines instead.", true);
    }
  });
  return [element("h3", {}, name), element("pre", { tabIndex: 0 }, text), copy];
}
