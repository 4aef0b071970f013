// The service's HTTP interface, as these pages use it.

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

/** Return {labels, width, height, stages} of a picture: one class id per pixel, milliseconds per stage. */
export async function labelsOf(picture, model, signal) {
  const response = await ask(`${segmentPath(model)}?output=labels`, {
    method: "POST",
    body: picture,
    headers: { Accept: "application/octet-stream" },
    signal,
  });
  const labels = new Uint8Array(await response.arrayBuffer());
  return {
    labels,
    width: Number(response.headers.get("x-image-width")),
    height: Number(response.headers.get("x-image-height")),
    stages: stagesOf(response.headers.get("server-timing") ?? ""),
  };
}

/** Parse Server-Timing into [name, milliseconds] pairs. */
export function stagesOf(header) {
  return [...header.matchAll(/([\w-]+)(?:;[^,]*?)?;dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]);
}
