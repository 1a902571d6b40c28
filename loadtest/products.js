// A load like that of a web shop: mostly single reads, most of them of few products; some batches, some price changes.
//
//   k6 run loadtest/products.js
//   k6 run -e ADDRESS=host:50051 -e PRODUCTS=10000 -e RATE=2000 -e RAMP=1m -e DURATION=5m loadtest/products.js
//
// Exits with an error if a response was wrong, if calls failed or were slow, or if there was nothing to call.

import { check, fail } from 'k6';
import exec from 'k6/execution';
import grpc from 'k6/net/grpc';

import { ADDRESS, PRODUCTS, cannotRead, hotId, hotIds, newPrice, optionsFor } from './load.js';

export const options = optionsFor('grpc_req_duration');

const client = new grpc.Client();
client.load(['../proto'], 'hotshelf/v1/product_service.proto');

// Without this a run that made no call would have no failed check.
export function setup() {
  client.connect(ADDRESS, { plaintext: true, timeout: '10s' });
  const last = client.invoke('hotshelf.v1.ProductService/GetProduct', { id: String(PRODUCTS) });
  client.close();
  if (last.status !== grpc.StatusOK) fail(cannotRead);
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
  const ids = hotIds();
  const response = call('BatchGetProducts', { ids });
  check(response, {
    'batch is OK': (r) => r.status === grpc.StatusOK,
    'batch answers in order': (r) =>
      r.message && r.message.products.length === ids.length && r.message.products.every((product, i) => product.id === ids[i]),
  });
}

export function update() {
  const id = String(hotId());
  const updated = call('UpdateProduct', { product: { id, price: newPrice() }, updateMask: 'price' });
  check(updated, { 'update is OK': (r) => r.status === grpc.StatusOK });
  if (updated.status !== grpc.StatusOK) return;
  const version = updated.message.version;
  const read = call('GetProduct', { id, minVersion: version });
  check(read, { 'a writer reads its write': (r) => r.message && BigInt(r.message.version) >= BigInt(version) });
}
