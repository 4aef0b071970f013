// The messages of proto/segmentation.proto that the camera page sends and reads, as protobuf encodes them.

const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

const MASK_PNG = 1;
const LATEST_WINS = 1;
const ENCODED = 1;
const DROP_REASONS = ["unknown", "superseded", "too old", "draining"];
const GOING_AWAY = 2;

/** Return the first message of a stream: StreamRequest{open}. */
export function openMessage({ model, maxInFlight, maxFrameAgeMs }) {
  const open = [
    ...bytesField(1, new TextEncoder().encode(model)),
    ...numberField(2, MASK_PNG),
    ...numberField(3, LATEST_WINS),
    ...numberField(4, maxInFlight),
    ...numberField(5, maxFrameAgeMs),
  ];
  return Uint8Array.from(bytesField(1, open));
}

/** Return the message of a frame, StreamRequest{frame}, as a Blob around the picture's. */
export function frameMessage(seq, picture) {
  const data = head(1, picture.size);
  const rest = numberField(2, ENCODED);
  const imageHead = head(3, data.length + picture.size + rest.length);
  const number = numberField(1, seq);
  const frameBytes = number.length + imageHead.length + data.length + picture.size + rest.length;
  return new Blob([Uint8Array.from([...head(2, frameBytes), ...number, ...imageHead, ...data]), picture, Uint8Array.from(rest)]);
}

/** Read a StreamResponse: {kind, ...} of one of opened, result, dropped, error, notice. */
export function readAnswer(buffer) {
  const [kind, bytes] = [...fieldsOf(new Uint8Array(buffer))][0];
  const message = fieldsOf(bytes);
  const number = (field) => Number(message.get(field) ?? 0);
  switch (kind) {
    case 1:
      return { kind: "opened", model: text(message.get(1)), version: number(2) };
    case 2: {
      const mask = fieldsOf(message.get(3));
      return { kind: "result", seq: number(1), version: number(4), png: mask.get(1), timings: timingsOf(message.get(5)) };
    }
    case 3:
      return { kind: "dropped", count: number(3), last: number(2), reason: DROP_REASONS[number(4)] ?? "unknown" };
    case 4:
      return { kind: "error", seq: number(1), code: text(message.get(3)) };
    default:
      return { kind: "notice", isGoingAway: number(1) === GOING_AWAY, version: number(2) };
  }
}

function timingsOf(bytes) {
  const fields = bytes ? fieldsOf(bytes) : new Map();
  return ["decode", "queue", "infer", "post", "encode"].map((name, i) => [name, fields.get(i + 1) ?? 0]);
}

function head(field, length) {
  return [...varint((field << 3) | BYTES), ...varint(length)];
}

function bytesField(field, bytes) {
  return [...head(field, bytes.length), ...bytes];
}

function numberField(field, number) {
  return [...varint((field << 3) | VARINT), ...varint(number)];
}

function varint(number) {
  const bytes = [];
  for (; number > 127; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
  return [...bytes, number];
}

/** Return the last value of each field: a number, or bytes. */
function fieldsOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const fields = new Map();
  let at = 0;
  const number = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = view.getUint8(at++);
      value += (byte % 128) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = number();
    const [field, type] = [Math.floor(tag / 8), tag % 8];
    if (type === VARINT) {
      fields.set(field, number());
    } else if (type === BYTES) {
      const length = number();
      fields.set(field, bytes.subarray(at, at + length));
      at += length;
    } else if (type === FIXED32) {
      fields.set(field, view.getFloat32(at, true));
      at += 4;
    } else if (type === FIXED64) {
      at += 8;
    } else {
      throw new Error(`no message of the service: wire type ${type}`);
    }
  }
  return fields;
}

function text(bytes) {
  return bytes ? new TextDecoder().decode(bytes) : "";
}
