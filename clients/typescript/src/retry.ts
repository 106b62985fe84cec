/**
 * When a call is made again: where the service says that it is unavailable for a moment, and where the connection broke.
 * With exponential backoff and jitter, no sooner than the service asks for, and until its time is up.
 */

import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";

/** How long and how often a call is tried. All in milliseconds. */
export interface Retry {
  /** How long a call may take with all its attempts. A service that is restarting is back within half a minute. */
  giveUpAfter: number;
  /** The backoff after the first attempt that failed; it doubles with each one. */
  backoffMin: number;
  /** The longest backoff. */
  backoffMax: number;
}

export const retryDefault: Retry = { giveUpAfter: 30_000, backoffMin: 50, backoffMax: 2_000 };

/** What became of an attempt. */
type Attempt<T> =
  | { answer: T }
  /** It may succeed later, no sooner than after so many milliseconds. `last` is how the call ends if it is not made again. */
  | { retryAfter: number; last: () => T };

/** Makes requests over HTTP, each again where that can help. */
export function repeatedRequests(retry: Retry): (request: Request) => Promise<Response> {
  return (request) =>
    repeated(retry, request.signal, async (signal) => {
      try {
        const response = await whole(await fetch(new Request(request.clone(), { signal })));
        return response.status === 503
          ? { retryAfter: 1_000 * numberIn(response.headers, "Retry-After"), last: () => response }
          : { answer: response };
      } catch (error) {
        return broken(error);
      }
    });
}

/** Makes calls over gRPC-Web again where that can help, but for streams: who reads one knows where to go on. */
export function repeatedCalls(retry: Retry): Interceptor {
  return (next) => (request) => {
    if (request.stream) {
      return next(request);
    }
    return repeated(retry, request.signal, async (signal) => {
      try {
        return { answer: await next({ ...request, signal }) };
      } catch (error) {
        if (error instanceof ConnectError && error.code === Code.Unavailable) {
          return { retryAfter: numberIn(error.metadata, "grpc-retry-pushback-ms"), last: thrown(error) };
        }
        return broken(error);
      }
    });
  };
}

async function repeated<T>(
  retry: Retry,
  callers: AbortSignal,
  attempt: (signal: AbortSignal) => Promise<Attempt<T>>,
): Promise<T> {
  const end = performance.now() + retry.giveUpAfter;
  // Over with the attempts: a stream that was opened in time may be read for longer.
  const deadline = new AbortController();
  const timer = setTimeout(() => deadline.abort(new DOMException("no attempt ended in time", "TimeoutError")), retry.giveUpAfter);
  const signal = AbortSignal.any([callers, deadline.signal]);
  try {
    for (let backoff = retry.backoffMin; ; backoff = Math.min(2 * backoff, retry.backoffMax)) {
      const made = await attempt(signal);
      if ("answer" in made) {
        return made.answer;
      }
      // Never the same for all callers: they were refused together.
      const wait = made.retryAfter + backoff * (0.5 + Math.random());
      if (performance.now() + wait >= end) {
        return made.last();
      }
      await pause(wait, signal);
    }
  } finally {
    clearTimeout(timer);
  }
}

/** Receives a document as a part of the attempt: a connection may break in the middle of it. Streams go on as they are. */
async function whole(response: Response): Promise<Response> {
  const type = response.headers.get("Content-Type") ?? "";
  if (response.body === null || !/^application\/(problem\+)?json\b/.test(type)) {
    return response;
  }
  const { status, statusText, headers } = response;
  return new Response(await response.arrayBuffer(), { status, statusText, headers });
}

function numberIn(headers: Headers, name: string): number {
  return Number(headers.get(name)) || 0;
}

/** `fetch` throws this, and nothing else, where there was no connection or it broke. */
function broken(error: unknown): Attempt<never> {
  if (!(error instanceof TypeError)) {
    throw error;
  }
  return { retryAfter: 0, last: thrown(error) };
}

function thrown(error: unknown): () => never {
  return () => {
    throw error;
  };
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", cancelled);
    function done(): void {
      signal.removeEventListener("abort", cancelled);
      resolve();
    }
    function cancelled(): void {
      clearTimeout(timer);
      reject(signal.reason);
    }
  });
}
