// One frame: length of the head (4 bytes, little endian), head (JSON), then the buffers whose sizes the head tells in `b`.
const encoder = new TextEncoder();
const decoder = new TextDecoder();

export function pack(message, buffers = []) {
  const parts = buffers.map((one) => new Uint8Array(one.buffer ?? one, one.byteOffset ?? 0, one.byteLength));
  const head = encoder.encode(JSON.stringify({ ...message, b: parts.map((part) => part.length) }));
  const frame = new Uint8Array(parts.reduce((size, part) => size + part.length, 4 + head.length));
  new DataView(frame.buffer).setUint32(0, head.length, true);
  frame.set(head, 4);
  let place = 4 + head.length;
  for (const part of parts) {
    frame.set(part, place);
    place += part.length;
  }
  return frame;
}

export function unpack(frame) {
  const size = new DataView(frame).getUint32(0, true);
  const message = JSON.parse(decoder.decode(new Uint8Array(frame, 4, size)));
  let place = 4 + size;
  const buffers = (message.b ?? []).map((length) => new DataView(frame, (place += length) - length, length));
  return [message, buffers];
}
