/** Idempotency keys. A command has one before it is sent for the first time, and the same for every attempt. */

import { clone } from "@bufbuild/protobuf";
import type { Interceptor } from "@connectrpc/connect";
import { v7 } from "uuid";

const HEADER = "Idempotency-Key";

/** A new key: a UUIDv7, because keys in the order of time go to the end of the service's index. */
export function newKey(): string {
  return v7();
}

/** A description in which no request has to have a key, because it gets one. */
export type KeyOptional<Paths> = {
  [Path in keyof Paths]: {
    [Method in keyof Paths[Path]]: Paths[Path][Method] extends {
      parameters: infer Parameters extends { header: object };
    }
      ? Omit<Paths[Path][Method], "parameters"> & {
          parameters: Omit<Parameters, "header"> & { header?: Partial<Parameters["header"]> };
        }
      : Paths[Path][Method];
  };
};

/** Gives a request a key, unless it has one. */
export function keyed(request: Request): Request {
  if (!request.headers.has(HEADER)) {
    request.headers.set(HEADER, newKey());
  }
  return request;
}

/** Gives a command over gRPC a key, unless it has one. */
export const keyedCall: Interceptor = (next) => (request) => {
  const field = request.method.input.field["requestId"];
  if (request.stream || field === undefined) {
    return next(request);
  }
  // The caller's own message stays as it is: another command may be made of it.
  const message = clone(request.method.input, request.message) as typeof request.message & { requestId: string };
  message.requestId ||= newKey();
  return next({ ...request, message });
};
