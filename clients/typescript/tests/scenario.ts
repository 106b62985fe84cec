/**
 * The scenario that every client plays: it places an order, sends it again, reads it with the token, and is refused. It runs in
 * Node.js and in a browser, on a page of another origin.
 */

import { create, equals } from "@bufbuild/protobuf";

import { HistoryService } from "../gen/daybook/history/v1/history_service_pb.js";
import { OrderQueryService } from "../gen/daybook/orders/v1/order_query_service_pb.js";
import {
  OrderService,
  PlaceOrderRequestSchema,
  PlaceOrderResponseSchema,
} from "../gen/daybook/orders/v1/order_service_pb.js";
import { StockService } from "../gen/daybook/stock/v1/stock_service_pb.js";
import { Daybook, Refusal, after, answer, newKey } from "../src/index.js";
import { calledBare } from "./bare.js";

/** Where the services are, and a key for each kind of user. */
export interface World {
  commandUrl: string;
  queryUrl: string;
  serviceKey: string;
  auditorKey: string;
  operatorKey: string;
}

/** Clients that may write, that may read everything, that may do neither, and that nobody knows. */
interface Clients {
  writer: Daybook;
  auditor: Daybook;
  operator: Daybook;
  stranger: Daybook;
}

export async function play(world: World): Promise<void> {
  const as = (apiKey: string) => new Daybook({ ...world, apiKey });
  const clients: Clients = {
    writer: as(world.serviceKey),
    auditor: as(world.auditorKey),
    operator: as(world.operatorKey),
    stranger: as("dbk_live_nobody"),
  };
  await overHttp(clients);
  await overGrpcWeb(clients);
  await isHealthyAndDescribesItself(world.commandUrl, "daybook.orders.v1.OrderService");
  await isHealthyAndDescribesItself(world.queryUrl, "daybook.orders.v1.OrderQueryService");
}

function orderOf(customer: string) {
  return {
    customer_id: customer,
    currency: "EUR",
    lines: [{ sku: "PEN-FINE", quantity: 2, unit_price_minor: 3450 }],
    context: { actor: "agent:jane", reason: "a scenario", correlation_id: customer },
  };
}

async function overHttp({ writer, auditor, operator, stranger }: Clients): Promise<void> {
  const customer = `scenario-${newKey()}`;
  const command = { params: { header: { "Idempotency-Key": newKey() } }, body: orderOf(customer) };
  const placed = await writer.commands.POST("/v1/orders", command);
  const repeated = await writer.commands.POST("/v1/orders", command);
  const receipt = (await answer(Promise.resolve(placed))).data;
  equal(repeated.data, placed.data);
  equal(placed.response.status, 201);
  equal(placed.response.headers.get("Daybook-Consistency"), receipt.consistency_token);
  equal(placed.response.headers.get("Location")?.endsWith(`/v1/orders/${receipt.stream_id}`), true);
  equal(
    [placed, repeated].map(({ response }) => response.headers.get("Idempotency-Replayed")),
    [null, "true"],
  );

  const path = { order_id: receipt.stream_id };
  const header = after(receipt.consistency_token);
  const read = await auditor.queries.GET("/v1/orders/{order_id}", { params: { path, header } });
  equal([read.data?.data.customer_id, read.data?.data.version], [customer, 1]);
  equal(read.data?.data.total, { minor: 6900, currency: "EUR" });
  const etag = read.response.headers.get("ETag") ?? "";
  for (const [name, form] of [
    ["ETag", /^"v1-/],
    ["Daybook-Consistency", /./],
    ["Daybook-Lag-Ms", /^\d+$/],
    ["Daybook-Position", /^\d+$/],
    ["X-Request-Id", /./],
  ] as const) {
    equal([name, form.test(read.response.headers.get(name) ?? "")], [name, true]);
  }
  const unchanged = await auditor.queries.GET("/v1/orders/{order_id}", {
    params: { path, header: { ...header, "If-None-Match": etag } },
  });
  equal([unchanged.response.status, unchanged.response.headers.get("ETag")], [304, etag]);

  const query = { customer_id: customer };
  const page = await answer(auditor.queries.GET("/v1/orders", { params: { query, header } }));
  equal([page.data.map((order) => order.order_id), page.pagination.has_more], [[receipt.stream_id], false]);
  const events = await answer(
    auditor.queries.GET("/v1/{aggregates}/{id}/events", {
      params: { path: { aggregates: "orders", id: receipt.stream_id } },
    }),
  );
  equal(
    events.data.map((event) => [event.event_type, event.metadata.actor, event.metadata.correlation_id]),
    [["order.placed", "agent:jane", customer]],
  );

  const confirm = (etag: string) =>
    writer.commands.POST("/v1/orders/{order_id}/confirm", {
      params: { path, header: { "If-Match": etag } },
      body: {},
    });
  equal((await answer(confirm(etag))).data.stream_version, 2);

  const reader = { params: { path } };
  await refused("VERSION_CONFLICT", answer(confirm(etag)));
  await refused("VALIDATION_FAILED", answer(writer.commands.POST("/v1/orders", { body: { currency: "XXXX" } })), [
    "/currency",
    "/lines",
  ]);
  await refused(
    "IDEMPOTENCY_KEY_REUSED",
    answer(writer.commands.POST("/v1/orders", { ...command, body: { ...command.body, currency: "USD" } })),
  );
  await refused("UNAUTHENTICATED", answer(stranger.queries.GET("/v1/orders/{order_id}", reader)));
  await refused("PERMISSION_DENIED", answer(operator.queries.GET("/v1/orders/{order_id}", reader)));
  await refused(
    "RESOURCE_NOT_FOUND",
    answer(auditor.queries.GET("/v1/orders/{order_id}", { params: { path: { order_id: NO_ORDER } } })),
  );
}

/** The id of an order that does not exist. */
const NO_ORDER = "ord_01h455vb4pex5vsknk084sn02q";

async function overGrpcWeb({ writer, auditor, operator, stranger }: Clients): Promise<void> {
  const customer = `scenario-${newKey()}`;
  const orders = writer.commandService(OrderService);
  const command = create(PlaceOrderRequestSchema, {
    requestId: newKey(),
    customerId: customer,
    currency: "EUR",
    lines: [{ sku: "PEN-FINE", quantity: 2, unitPriceMinor: 3450n }],
    context: { actor: "agent:jane", reason: "a scenario", correlationId: customer },
  });
  const placed = await orders.placeOrder(command);
  const repeated = await orders.placeOrder(command);
  equal(equals(PlaceOrderResponseSchema, placed, repeated), true);
  const receipt = placed.receipt;
  if (receipt === undefined) {
    throw new Error("there is no receipt");
  }
  const registered = await writer.commandService(StockService).registerStockItem({ sku: customer });
  equal(registered.receipt?.streamId.startsWith("stk_"), true);

  const queries = auditor.queryService(OrderQueryService);
  const orderId = receipt.streamId;
  const freshness = { consistencyToken: receipt.consistencyToken };
  const { order } = await queries.getOrder({ orderId, freshness });
  equal([order?.orderId, order?.version, order?.customerId], [orderId, receipt.streamVersion, customer]);
  equal([order?.total?.minor, order?.total?.currency], [6900n, "EUR"]);
  const page = await queries.listOrders({ customerId: customer, freshness });
  equal([page.orders.map((listed) => listed.orderId), page.nextPageToken], [[orderId], ""]);
  const { events } = await auditor.queryService(HistoryService).listStreamEvents({ streamId: orderId });
  equal(
    events.map((event) => [event.eventType, event.streamVersion, event.metadata?.actor, event.metadata?.reason]),
    [["order.placed", 1n, "agent:jane", "a scenario"]],
  );

  await refused("VALIDATION_FAILED", orders.placeOrder({ currency: "XXXX" }), ["/currency", "/lines"]);
  await refused("IDEMPOTENCY_KEY_REUSED", orders.placeOrder({ ...command, currency: "USD" }));
  await refused("ORDER_NOT_CONFIRMED", orders.shipOrder({ orderId, shipmentId: "parcel-1" }));
  await refused("VERSION_CONFLICT", orders.confirmOrder({ orderId, expectedVersion: 7n }));
  await refused("UNAUTHENTICATED", stranger.queryService(OrderQueryService).getOrder({ orderId }));
  await refused("PERMISSION_DENIED", operator.queryService(OrderQueryService).getOrder({ orderId }));
  await refused("RESOURCE_NOT_FOUND", queries.getOrder({ orderId: NO_ORDER }));
}

/** Health says yes, and reflection lists the service, which gRPC-Web permits with one question in each call. */
async function isHealthyAndDescribesItself(url: string, service: string): Promise<void> {
  for (const name of ["", service]) {
    // HealthCheckRequest.service = 1; HealthCheckResponse.status = 1 is SERVING = 1.
    const health = await calledBare(url, "grpc.health.v1.Health/Check", text(1, name));
    equal([health.status, [...health.message]], [0, [0x08, 1]]);
  }
  const nothing = await calledBare(url, "grpc.health.v1.Health/Check", text(1, "daybook.nothing.v1.Nothing"));
  equal(nothing.status, 5);
  // ServerReflectionRequest.list_services = 7.
  const method = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
  const listed = await calledBare(url, method, text(7, "*"));
  equal([listed.status, new TextDecoder().decode(listed.message).includes(service)], [0, true]);
}

/** A field of a message, as protobuf encodes text of less than 128 bytes. */
function text(field: number, value: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from([(field << 3) | 2, value.length, ...new TextEncoder().encode(value)]);
}

/** Holds a call to the code that it is refused with, and to fields that are wrong. */
async function refused(code: string, call: Promise<unknown>, fields: string[] = []): Promise<void> {
  const refusal = await call.then(
    () => undefined,
    (error: unknown) => (error instanceof Refusal ? error : Refusal.ofCall(error)) ?? Promise.reject(error),
  );
  equal(refusal?.code, code);
  equal(typeof refusal?.requestId, "string");
  const wrong = refusal?.violations.map((violation) => violation.pointer) ?? [];
  equal(fields.filter((field) => !wrong.includes(field)), []);
}

export function equal(actual: unknown, expected: unknown): void {
  const shown = (value: unknown) =>
    JSON.stringify(value, (_, inner: unknown) => (typeof inner === "bigint" ? `${inner}n` : inner));
  if (shown(actual) !== shown(expected)) {
    throw new Error(`${shown(actual)} instead of ${shown(expected)}`);
  }
}
