/**
 * A client of Daybook for browsers and Node.js.
 *
 * Types and services are generated from the OpenAPI documents and the protos. What is written by hand does keys, retries,
 * tokens and refusals, the same for both transports.
 */

export { Daybook, after, type Settings } from "./daybook.js";
export { newKey } from "./key.js";
export { Refusal, answer, type Problem, type Violation } from "./refusal.js";
export { type Retry } from "./retry.js";
export type { components as CommandComponents, paths as CommandPaths } from "../gen/commands.js";
export type { components as QueryComponents, paths as QueryPaths } from "../gen/queries.js";
