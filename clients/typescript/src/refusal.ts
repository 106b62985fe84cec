/** What the services refuse, and why: the same over both transports. */

import { ConnectError } from "@connectrpc/connect";

import type { components } from "../gen/queries.js";
import { BadRequestSchema, ErrorInfoSchema, RequestInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";

/** A problem of RFC 9457. */
export type Problem = components["schemas"]["Problem"];

/** A field that is wrong. */
export type Violation = components["schemas"]["Violation"];

/** Why the service refused. Its message is for people; its `code` is for programs. */
export class Refusal extends Error {
  override readonly name = "Refusal";
  /** A code of the catalogue, which the services explain at `/problems`. It may be one that is newer than this client. */
  readonly code: string;
  /** Names the request for whoever looks into it. */
  readonly requestId: string | undefined;
  /** The fields that are wrong. */
  readonly violations: readonly Violation[];
  /** How long to wait before the next attempt, in milliseconds. */
  readonly retryAfter: number | undefined;

  private constructor(
    message: string,
    found: { code: string; requestId: string | undefined; violations: Violation[]; retryAfter: number | undefined },
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.code = found.code;
    this.requestId = found.requestId;
    this.violations = found.violations;
    this.retryAfter = found.retryAfter;
  }

  /** As HTTP says it. */
  static ofProblem(problem: Problem): Refusal {
    return new Refusal(problem.detail, {
      code: problem.code,
      requestId: problem.request_id,
      violations: problem.errors ?? [],
      retryAfter: problem.retry_after_ms,
    });
  }

  /** As gRPC says it. `undefined` where the service did not: the connection broke, or the caller gave up. */
  static ofCall(error: unknown): Refusal | undefined {
    if (!(error instanceof ConnectError)) {
      return undefined;
    }
    const [info] = error.findDetails(ErrorInfoSchema);
    if (info === undefined) {
      return undefined;
    }
    const [request] = error.findDetails(RequestInfoSchema);
    const [fields] = error.findDetails(BadRequestSchema);
    const [retry] = error.findDetails(RetryInfoSchema);
    const found = {
      code: info.reason,
      requestId: request?.requestId,
      violations: (fields?.fieldViolations ?? []).map(({ field, reason, description }) => ({
        pointer: field,
        code: reason,
        message: description,
      })),
      retryAfter: retry?.retryDelay && Number(retry.retryDelay.seconds) * 1_000 + retry.retryDelay.nanos / 1_000_000,
    };
    return new Refusal(error.rawMessage, found, { cause: error });
  }
}

/** The content of an answer over HTTP; a refusal is thrown. */
export async function answer<T>(
  call: Promise<{ data?: T; error?: unknown; response: Response }>,
): Promise<T> {
  const { data, error, response } = await call;
  if (response.ok) {
    return data as T;
  }
  if (typeof error === "object" && error !== null && "code" in error) {
    throw Refusal.ofProblem(error as Problem);
  }
  throw new Error(`HTTP status ${response.status} without a problem`);
}
