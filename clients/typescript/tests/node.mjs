// The client in Node.js: the scenario, and commands whose first answers get lost on the way. It needs the addresses and keys of
// `.daybook/dev.env` in its environment.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, request as httpRequest } from "node:http";
import { buffer } from "node:stream/consumers";

import { OrderService } from "../dist/gen/daybook/orders/v1/order_service_pb.js";
import { Daybook, after, answer, newKey } from "../dist/src/index.js";
import { play } from "../dist/tests/scenario.js";

const world = {
  commandUrl: process.env.DAYBOOK_COMMAND_URL,
  queryUrl: process.env.DAYBOOK_QUERY_URL,
  serviceKey: process.env.DAYBOOK_SERVICE_KEY,
  auditorKey: process.env.DAYBOOK_AUDITOR_KEY,
  operatorKey: process.env.DAYBOOK_OPERATOR_KEY,
};

/** How long the bad network asks to be left alone. */
const RETRY_AFTER_MS = 1_000;

/** What it says to gRPC-Web, and to HTTP. */
const UNAVAILABLE = {
  "application/grpc-web+proto": [200, { "grpc-status": "14", "grpc-retry-pushback-ms": String(RETRY_AFTER_MS) }],
  "application/json": [503, { "Retry-After": String(RETRY_AFTER_MS / 1_000) }],
};

/**
 * A bad network before the command service. The first request arrives and is answered, and the answer breaks off in the middle; the
 * second is refused; all others get through. `seen` has the keys of all.
 */
async function badNetwork() {
  const seen = [];
  const server = createServer(async (request, response) => {
    const body = await buffer(request);
    const type = request.headers["content-type"];
    seen.push(request.headers["idempotency-key"] ?? body.toString("latin1"));
    if (seen.length === 2) {
      const [status, headers] = UNAVAILABLE[type];
      response.writeHead(status, { "Content-Type": type, ...headers }).end();
      return;
    }
    const [answered, content] = await forwarded(request, body);
    response.writeHead(answered.statusCode, answered.headers);
    if (seen.length === 1) {
      response.write(content.subarray(0, content.length / 2), () => response.destroy());
    } else {
      response.end(content);
    }
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  return { server, seen, url: `http://127.0.0.1:${server.address().port}` };
}

async function forwarded({ method, url, headers }, body) {
  const sent = httpRequest(world.commandUrl + url, { method, headers }).end(body);
  const [answered] = await once(sent, "response");
  return [answered, await buffer(answered)];
}

/** A command arrives three times under one key, is done once, and was not sent again before its time. */
async function isDoneOnce(place) {
  const { server, seen, url } = await badNetwork();
  const customer = `bad-network-${newKey()}`;
  const started = performance.now();
  const token = await place(new Daybook({ ...world, commandUrl: url, apiKey: world.serviceKey }), customer);
  assert.ok(performance.now() - started >= RETRY_AFTER_MS);
  server.closeAllConnections();
  server.close();
  assert.equal(seen.length, 3);
  assert.equal(new Set(seen).size, 1);
  const auditor = new Daybook({ ...world, apiKey: world.auditorKey });
  const params = { query: { customer_id: customer }, header: after(token) };
  const orders = await answer(auditor.queries.GET("/v1/orders", { params }));
  assert.deepEqual(
    orders.data.map((order) => order.version),
    [1],
  );
}

await play(world);
await isDoneOnce(async (daybook, customer) => {
  const lines = [{ sku: "PEN-FINE", quantity: 2, unit_price_minor: 3450 }];
  const body = { customer_id: customer, currency: "EUR", lines };
  const { data, response } = await daybook.commands.POST("/v1/orders", { body });
  assert.equal(response.headers.get("Idempotency-Replayed"), "true");
  return data.data.consistency_token;
});
await isDoneOnce(async (daybook, customer) => {
  const lines = [{ sku: "PEN-FINE", quantity: 2, unitPriceMinor: 3450n }];
  const orders = daybook.commandService(OrderService);
  const { receipt } = await orders.placeOrder({ customerId: customer, currency: "EUR", lines });
  return receipt.consistencyToken;
});
