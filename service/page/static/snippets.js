// The request of the page as lines that repeat it elsewhere.

import { element, say } from "./dom.js";

const INDENT = "    ";

export function showSnippets(target, model, origin, status) {
  const url = new URL(`v1/models/${model.name}:segment`, origin).href;
  const texts = {
    curl: `curl --data-binary @photo.jpg ${url} -o mask.png`,
    Python: [
      "from service.client.http_client import HttpClient",
      "",
      `with HttpClient("${new URL(origin).origin}") as client:`,
      `${INDENT}answer = client.segment(open("photo.jpg", "rb").read(), model="${model.name}")`,
      "print(answer.mask.labels().shape)",
    ].join("\n"),
    "gRPC, for a film": `bisenet stream photo.mp4 --server ${new URL(origin).hostname}:8001 --model ${model.name} --out overlay.mp4`,
  };
  target.replaceChildren(...Object.entries(texts).flatMap(([name, text]) => snippet(name, text, status)));
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
