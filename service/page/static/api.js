// The service's HTTP interface, as these pages use it.

import { readPng } from "./png.js";

let apiKey = "";

/** An answer of the service that is no success, in words for people. */
export class ServiceError extends Error {
  constructor(message, { status = 0, code = "", requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId });
  }
}

export function useKey(key) {
  apiKey = key;
}

export function hasKey() {
  return apiKey !== "";
}

/** Ask the service; throw a ServiceError for anything but a success. */
export async function ask(path, { headers = {}, ...options } = {}) {
  const authorization = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...authorization }, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  throw await errorOf(response);
}

async function errorOf(response) {
  const problem = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("retry-after"));
  const again = wait ? ` Try again in ${wait} s.` : "";
  const said = problem.detail || problem.title || response.statusText || "The request failed";
  const sentence = said.charAt(0).toUpperCase() + said.slice(1);
  return new ServiceError(`${sentence.replace(/\.?$/, ".")}${again}`, {
    status: response.status,
    code: problem.code ?? "",
    requestId: problem.request_id ?? response.headers.get("x-request-id") ?? "",
  });
}

/** Return the message of an error, with the id of its request where it has one. */
export function inWords(error) {
  return error.requestId ? `${error.message} (request ${error.requestId})` : error.message;
}

export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** Return the address of the WebSocket for frames. */
export function streamAddress() {
  const address = new URL("page/camera", document.baseURI);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  address.hash = "";
  return address.href;
}

/** Return its subprotocols: the one of the frames, and the key, since a WebSocket carries no other header. */
export function streamProtocols() {
  const encoded = btoa(apiKey).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return ["segmentation.v1", ...(apiKey ? [`bearer.${encoded}`] : [])];
}

export async function models() {
  return (await (await ask("v1/models")).json()).models;
}

export function segmentPath(model) {
  return `v1/models/${encodeURIComponent(model.name)}/versions/${model.version}:segment`;
}

/** Return {labels, confidence, width, height, stages}: a class id and 255ths of a probability per pixel, ms per stage. */
export async function labelsOf(picture, model, signal) {
  const response = await ask(`${segmentPath(model)}?mask=png&confidence=png`, {
    method: "POST",
    body: picture,
    headers: { Accept: "application/json" },
    signal,
  });
  const { mask, confidence } = await response.json();
  const [labels, sure] = await Promise.all([mask, confidence].map(({ data }) => readPng(bytesOf(data))));
  return {
    labels: labels.values,
    confidence: sure.values,
    width: labels.width,
    height: labels.height,
    stages: stagesOf(response.headers.get("server-timing") ?? ""),
  };
}

/** Parse Server-Timing into [name, milliseconds] pairs. */
export function stagesOf(header) {
  return [...header.matchAll(/([\w-]+)(?:;[^,]*?)?;dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]);
}
