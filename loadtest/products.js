// A load like that of a web shop: mostly single reads, most of them of few products; some batches, some price changes.
//
//   k6 run loadtest/products.js
//   k6 run -e ADDRESS=host:50051 -e PRODUCTS=10000 -e RATE=2000 -e RAMP=1m -e DURATION=5m loadtest/products.js
//
// Exits with an error if a response was wrong, if calls failed or were slow, or if there was nothing to call.

import { check, fail } from 'k6';
import exec from 'k6/execution';
import grpc from 'k6/net/grpc';

const ADDRESS = __ENV.ADDRESS || 'localhost:50051';
// Ids are 1 to this, as `make run` imports them.
const PRODUCTS = Number(__ENV.PRODUCTS || 10000);
// Calls begun per second, whether or not earlier ones have been answered; reached after RAMP, kept for DURATION.
const RATE = Number(__ENV.RATE || 500);
const RAMP = __ENV.RAMP || '10s';
const DURATION = __ENV.DURATION || '30s';
// Exponent of Zipf's law: a higher one gives the hottest products a larger share.
const SKEW = Number(__ENV.SKEW || 1.1);
// Products of a batch, before duplicates are left out.
const BATCH = Number(__ENV.BATCH || 20);
// How slow single reads may be, and how many calls k6 itself may fail to begin in time.
const P99_MS = Number(__ENV.P99_MS || 250);
const DROPPED = Number(__ENV.DROPPED || Math.max(10, RATE / 10));

const scenario = (name, share) => {
  const target = Math.max(1, Math.round(RATE * share));
  return {
    executor: 'ramping-arrival-rate',
    exec: name,
    startRate: 0,
    stages: [{ duration: RAMP, target }, { duration: DURATION, target }],
    preAllocatedVUs: 20,
    maxVUs: 200,
  };
};

export const options = {
  scenarios: {
    get: scenario('get', 0.94),
    batch: scenario('batch', 0.05),
    update: scenario('update', 0.01),
  },
  thresholds: {
    checks: ['rate>0.999'],
    // Above the limit k6 itself could not keep up, and the other figures do not show the speed of the server.
    dropped_iterations: [`count<${DROPPED}`],
    // Far above what a healthy server needs: it fails for a fault, not for a slow laptop.
    'grpc_req_duration{scenario:get}': [`p(99)<${P99_MS}`],
  },
};

const client = new grpc.Client();
client.load(['../proto'], 'hotshelf/v1/product_service.proto');

// Zipf: the n-th hottest product is read n^-SKEW times as often as the hottest.
const cumulative = new Float64Array(PRODUCTS);
for (let n = 0, sum = 0; n < PRODUCTS; n++) {
  sum += (n + 1) ** -SKEW;
  cumulative[n] = sum;
}

function hotId() {
  const point = Math.random() * cumulative[PRODUCTS - 1];
  let [low, high] = [0, PRODUCTS - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (cumulative[middle] < point) low = middle + 1;
    else high = middle;
  }
  return low + 1;
}

// Without this a run that made no call would have no failed check.
export function setup() {
  client.connect(ADDRESS, { plaintext: true, timeout: '10s' });
  const last = client.invoke('hotshelf.v1.ProductService/GetProduct', { id: String(PRODUCTS) });
  client.close();
  if (last.status !== grpc.StatusOK) {
    fail(`product ${PRODUCTS} cannot be read at ${ADDRESS}: set ADDRESS to the server and PRODUCTS to the number of its products`);
  }
}

// Each virtual user keeps one connection.
function call(method, request) {
  if (exec.vu.iterationInScenario === 0) client.connect(ADDRESS, { plaintext: true });
  return client.invoke(`hotshelf.v1.ProductService/${method}`, request, { timeout: '5s' });
}

export function get() {
  const id = String(hotId());
  const response = call('GetProduct', { id });
  check(response, {
    'get is OK': (r) => r.status === grpc.StatusOK,
    'get answers with the product': (r) => r.message && r.message.id === id,
    'get names the tier that answered': (r) => /^hotshelf; /.test([].concat(r.headers['cache-status'])[0]),
  });
}

export function batch() {
  const ids = [...new Set(Array.from({ length: BATCH }, hotId))].map(String);
  const response = call('BatchGetProducts', { ids });
  check(response, {
    'batch is OK': (r) => r.status === grpc.StatusOK,
    'batch answers in order': (r) =>
      r.message && r.message.products.length === ids.length && r.message.products.every((product, i) => product.id === ids[i]),
  });
}

export function update() {
  const id = String(hotId());
  const price = { currencyCode: 'USD', units: String(1 + Math.floor(Math.random() * 200)) };
  const updated = call('UpdateProduct', { product: { id, price }, updateMask: 'price' });
  check(updated, { 'update is OK': (r) => r.status === grpc.StatusOK });
  if (updated.status !== grpc.StatusOK) return;
  const version = updated.message.version;
  const read = call('GetProduct', { id, minVersion: version });
  check(read, { 'a writer reads its write': (r) => r.message && BigInt(r.message.version) >= BigInt(version) });
}
