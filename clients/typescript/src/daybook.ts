/** A caller of Daybook: of its HTTP interface by path, and of its gRPC services over gRPC-Web. */

import type { DescService } from "@bufbuild/protobuf";
import { createClient as createGrpcClient, type Client as GrpcClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import createClient, { type Client } from "openapi-fetch";

import type { paths as CommandPaths } from "../gen/commands.js";
import type { paths as QueryPaths } from "../gen/queries.js";
import { type KeyOptional, keyed, keyedCall } from "./key.js";
import { answer } from "./refusal.js";
import { type Retry, repeatedCalls, repeatedRequests, retryDefault } from "./retry.js";

/** How long a read waits for what a command wrote, as `Prefer` says it. */
const READ_WAIT = "wait=10";

export interface Settings {
  /** The address of the command service. */
  commandUrl: string;
  /** The address of the query service. */
  queryUrl: string;
  /** The API key. */
  apiKey: string;
  /** When a call is made again. */
  retry?: Retry;
}

/** A caller with one API key. */
export class Daybook {
  /** The command service over HTTP. A command without an `Idempotency-Key` gets one. */
  readonly commands: Client<KeyOptional<CommandPaths>>;
  /** The query service over HTTP. */
  readonly queries: Client<QueryPaths>;

  readonly #settings: Settings;
  readonly #retry: Retry;

  constructor(settings: Settings) {
    this.#settings = settings;
    this.#retry = settings.retry ?? retryDefault;
    const common = {
      headers: { Authorization: this.#authorization },
      fetch: repeatedRequests(this.#retry),
    };
    this.commands = createClient({ ...common, baseUrl: settings.commandUrl });
    this.commands.use({ onRequest: ({ request }) => keyed(request) });
    this.queries = createClient({ ...common, baseUrl: settings.queryUrl });
  }

  /** A service that takes commands, over gRPC-Web. A command without a `requestId` gets one. */
  commandService<S extends DescService>(service: S): GrpcClient<S> {
    return this.#service(service, this.#settings.commandUrl);
  }

  /** A service that answers queries, over gRPC-Web. */
  queryService<S extends DescService>(service: S): GrpcClient<S> {
    return this.#service(service, this.#settings.queryUrl);
  }

  /**
   * The address of a stream, given its path, for an `EventSource`: it cannot send a key, so a ticket is in the address. It has to
   * be opened within a minute, and is good for resuming that stream as long as the key is. An `EventSource` that was refused is
   * `CLOSED` for good: open another one at this address with the last `lastEventId` as its parameter `last_event_id`.
   */
  async streamUrl(path: string): Promise<URL> {
    const { data } = await answer(this.queries.POST("/v1/stream-tickets", { body: { stream: path } }));
    const url = new URL(path, this.#settings.queryUrl);
    url.searchParams.set("ticket", data.ticket);
    return url;
  }

  #service<S extends DescService>(service: S, baseUrl: string): GrpcClient<S> {
    const authorized: Interceptor = (next) => (request) => {
      request.header.set("Authorization", this.#authorization);
      return next(request);
    };
    // In this order: a call has its key before it is repeated.
    const interceptors = [authorized, keyedCall, repeatedCalls(this.#retry)];
    return createGrpcClient(service, createGrpcWebTransport({ baseUrl, interceptors }));
  }

  get #authorization(): string {
    return `Bearer ${this.#settings.apiKey}`;
  }
}

/** The headers of a read that shows what a command wrote, or what another answer showed: it waits for that. */
export function after(consistencyToken: string): { "Daybook-Consistency": string; Prefer: string } {
  return { "Daybook-Consistency": consistencyToken, Prefer: READ_WAIT };
}
