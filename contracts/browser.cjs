// The client in a browser, headless Chromium: on the page of an origin that the services let in, and on one that they do not; and
// a stream that its EventSource reads.
//   node browser.cjs CLIENT CHROMIUM
// Run by `cargo xtask contracts`, with addresses and keys in its environment. `DAYBOOK_PAGE_PORT` is where the page is
// served: as http://localhost, which the services let in, and as http://127.0.0.1, which is another origin.

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { readFile } = require('node:fs/promises');
const { createServer, request } = require('node:http');
const { join, extname } = require('node:path');
const { chromium } = require('playwright-core');

const DEADLINE_MS = 120_000;
const FLAGS = [
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

const [client, executablePath] = process.argv.slice(2);
const port = Number(process.env.DAYBOOK_PAGE_PORT);
const world = {
  commandUrl: process.env.DAYBOOK_COMMAND_URL,
  queryUrl: process.env.DAYBOOK_QUERY_URL,
  serviceKey: process.env.DAYBOOK_SERVICE_KEY,
  auditorKey: process.env.DAYBOOK_AUDITOR_KEY,
  operatorKey: process.env.DAYBOOK_OPERATOR_KEY,
};

// What browsers take of a package's exports.
function entry(target) {
  return typeof target === 'string' ? target : entry(target.browser ?? target.import ?? target.default);
}

// Where the page finds the packages that the client needs, without a bundler.
async function imports() {
  const found = {};
  for (const name of Object.keys(JSON.parse(await readFile(join(client, 'package.json'), 'utf8')).dependencies)) {
    const { exports } = JSON.parse(await readFile(join(client, 'node_modules', name, 'package.json'), 'utf8'));
    for (const [path, target] of Object.entries(exports)) {
      if (!path.includes('*')) found[join(name, path)] = `/${join('node_modules', name, entry(target))}`;
    }
  }
  return found;
}

async function pages() {
  const map = JSON.stringify({ imports: await imports() });
  const page = `<!doctype html><title>A shop</title><script type="importmap">${map}</script>`;
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://localhost');
    const isModule = ['.js', '.mjs'].includes(extname(pathname));
    const content = isModule ? await readFile(join(client, pathname)).catch(() => undefined) : page;
    response.writeHead(content === undefined ? 404 : 200, { 'Content-Type': isModule ? 'text/javascript' : 'text/html' });
    response.end(content);
  });
  await once(server.listen(port, '127.0.0.1'), 'listening');
  return server;
}

// Opens the page as one of an origin, with the list of services that Chromium asks before it sends a request.
async function opened(browser, origin) {
  const page = await browser.newPage();
  const asked = [];
  const session = await page.context().newCDPSession(page);
  await session.send('Network.enable');
  session.on('Network.requestWillBeSent', ({ initiator, request }) => {
    if (initiator.type === 'preflight') asked.push(new URL(request.url).origin);
  });
  await page.goto(`${origin}:${port}/`);
  return { page, asked };
}

async function isLetIn(browser) {
  const { page, asked } = await opened(browser, 'http://localhost');
  await page.evaluate(async (world) => {
    const { play } = await import('/dist/tests/scenario.js');
    await play(world);
  }, world);
  assert.deepEqual(new Set(asked), new Set([world.commandUrl, world.queryUrl]));
}

// The page of another origin gets no answer, and what has to be asked for first is not sent.
async function isKeptOut(browser) {
  const { page, asked } = await opened(browser, 'http://127.0.0.1');
  const customer = `kept-out-${Date.now()}`;
  const attempts = await page.evaluate(
    async ([{ commandUrl, queryUrl, serviceKey }, customer]) => {
      const headers = { Authorization: `Bearer ${serviceKey}`, 'Content-Type': 'application/json' };
      const lines = [{ sku: 'PEN-FINE', quantity: 1, unit_price_minor: 3450 }];
      const body = JSON.stringify({ customer_id: customer, currency: 'EUR', lines });
      const order = { method: 'POST', headers: { ...headers, 'Idempotency-Key': customer }, body };
      const call = { method: 'POST', headers: { ...headers, 'Content-Type': 'application/grpc-web+proto' } };
      const calls = [
        fetch(`${queryUrl}/v1/orders`),
        fetch(`${queryUrl}/v1/orders`, { headers }),
        fetch(`${queryUrl}/daybook.orders.v1.OrderQueryService/ListOrders`, call),
        fetch(`${commandUrl}/v1/orders`, order),
        fetch(`${commandUrl}/daybook.orders.v1.OrderService/PlaceOrder`, call),
      ];
      const ended = await Promise.allSettled(calls);
      return ended.map(({ status, reason }) => `${status} ${reason?.name}`);
    },
    [world, customer],
  );
  assert.deepEqual(attempts, Array(5).fill('rejected TypeError'));
  assert.deepEqual(new Set(asked), new Set([world.commandUrl, world.queryUrl]));
  const headers = { Authorization: `Bearer ${world.auditorKey}` };
  const list = await fetch(`${world.queryUrl}/v1/orders?customer_id=${customer}`, { headers });
  assert.deepEqual((await list.json()).data, []);
}

// A proxy between an EventSource and the query service. `broken` ends what is open; while it is `away`, it answers as a load
// balancer does that has no service behind it. `resumed` has what came as `Last-Event-ID`, in the header or the address.
async function proxy() {
  const self = { away: false, resumed: [], broken: () => server.closeAllConnections(), close: () => server.close() };
  const server = createServer(({ url, headers }, response) => {
    if (self.away) {
      response.writeHead(503, { 'Access-Control-Allow-Origin': '*' }).end();
      return;
    }
    const { searchParams } = new URL(url, world.queryUrl);
    self.resumed.push(headers['last-event-id'] ?? searchParams.get('last_event_id'));
    const sent = request(world.queryUrl + url, { headers: { ...headers, connection: 'close' } }).end();
    sent.on('response', (answered) => {
      response.writeHead(answered.statusCode, answered.headers);
      answered.pipe(response);
    });
    sent.on('error', () => response.destroy());
    response.on('close', () => sent.destroy());
  });
  await once(server.listen(0, '127.0.0.1').unref(), 'listening');
  self.port = server.address().port;
  return self;
}

// A page reads a stream with an EventSource, as the README does it.
async function reads(page, path, port) {
  await page.evaluate(
    async ([world, path, port]) => {
      const { Daybook } = await import('/dist/src/index.js');
      const url = await new Daybook({ ...world, apiKey: world.auditorKey }).streamUrl(path);
      url.port = port;
      window.versions = [];
      window.refusals = 0;
      const open = () => {
        const source = new EventSource(url);
        source.onmessage = ({ data, lastEventId }) => {
          url.searchParams.set('last_event_id', lastEventId);
          window.versions.push(JSON.parse(data).stream_version);
        };
        source.onerror = () => {
          if (source.readyState !== EventSource.CLOSED) return;
          window.refusals += 1;
          setTimeout(open, 500);
        };
      };
      open();
    },
    [world, path, port],
  );
}

// Each event is shown once: also those that were recorded while the connection was broken, and those after the browser was
// refused, which ends an EventSource for good.
async function resumes(browser) {
  const between = await proxy();
  const { page } = await opened(browser, 'http://localhost');
  const command = (path, body) =>
    page.evaluate(
      async ([world, path, body]) => {
        const { Daybook, answer } = await import('/dist/src/index.js');
        const daybook = new Daybook({ ...world, apiKey: world.serviceKey });
        return (await answer(daybook.commands.POST(path, { body }))).data.stream_id;
      },
      [world, path, body],
    );
  const item = await command('/v1/stock-items', { sku: `STREAM-${Date.now()}` });
  const receive = (reference) => command(`/v1/stock-items/${item}/receive`, { quantity: 1, reference });
  const shown = async (count) => {
    await page.waitForFunction((count) => window.versions.length >= count, count);
    return page.evaluate(() => window.versions);
  };
  await reads(page, `/v1/stock-items/${item}/events/stream?after_position=0`, between.port);
  await shown(1);
  between.broken();
  await receive('while it was broken');
  await shown(2);
  await receive('when it had resumed');
  await shown(3);
  between.away = true;
  between.broken();
  await page.waitForFunction(() => window.refusals > 0);
  await receive('while it was refused');
  between.away = false;
  await shown(4);
  await receive('when it was open again');
  assert.deepEqual(await shown(5), [1, 2, 3, 4, 5]);
  assert.deepEqual(between.resumed.map(Boolean), [false, true, true]);
  await page.close();
  between.close();
}

async function main() {
  const server = await pages();
  // Chromium cannot make its sandbox as root.
  const chromiumSandbox = process.getuid?.() !== 0;
  const browser = await chromium.launch({ executablePath, args: FLAGS, chromiumSandbox });
  try {
    await isLetIn(browser);
    await isKeptOut(browser);
    await resumes(browser);
  } finally {
    await browser.close();
    server.close();
  }
}

setTimeout(() => process.exit(1), DEADLINE_MS).unref();
main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
