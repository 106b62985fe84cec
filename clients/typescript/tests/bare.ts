/** A call of gRPC-Web that no library makes, for services of which there is no generated code. */

const HEAD_BYTES = 5;
const TRAILERS = 0x80;

export interface Called {
  /** The code of gRPC. */
  status: number;
  /** The first message, empty where there is none. */
  message: Uint8Array;
}

export async function calledBare(url: string, method: string, message: Uint8Array): Promise<Called> {
  const body = new Uint8Array(HEAD_BYTES + message.length);
  new DataView(body.buffer).setUint32(1, message.length);
  body.set(message, HEAD_BYTES);
  const headers = { "Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1" };
  const response = await fetch(`${url}/${method}`, { method: "POST", headers, body });
  let status = response.headers.get("grpc-status");
  let first: Uint8Array | undefined;
  for (const [flags, content] of frames(await response.arrayBuffer())) {
    if (flags === TRAILERS) {
      status = /^grpc-status: *(\d+)/m.exec(new TextDecoder().decode(content))?.[1] ?? status;
    } else {
      first ??= content;
    }
  }
  return { status: Number(status ?? NaN), message: first ?? new Uint8Array() };
}

function* frames(bytes: ArrayBuffer): Generator<[number, Uint8Array]> {
  const view = new DataView(bytes);
  for (let at = 0; at < bytes.byteLength; ) {
    const length = view.getUint32(at + 1);
    yield [view.getUint8(at), new Uint8Array(bytes, at + HEAD_BYTES, length)];
    at += HEAD_BYTES + length;
  }
}
