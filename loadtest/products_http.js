// The load of products.js as JSON over HTTP: reads ask with If-None-Match for what they hold.
//
//   k6 run loadtest/products_http.js
//   k6 run -e ADDRESS=host:50051 -e PRODUCTS=10000 -e RATE=2000 -e RAMP=1m -e DURATION=5m loadtest/products_http.js
//
// Exits with an error if a response was wrong, if calls failed or were slow, or if there was nothing to call.

import { check, fail } from 'k6';
import http from 'k6/http';

import { ADDRESS, PRODUCTS, cannotRead, hotId, hotIds, newPrice, optionsFor } from './load.js';

export const options = optionsFor('http_req_duration');

const URL = `http://${ADDRESS}/v1`;

// The entity tags of this virtual user, by id.
const held = new Map();

// 304 is an answer, and a name keeps one series for all ids.
const params = (name, headers = {}) => ({
  headers,
  tags: { name },
  timeout: '5s',
  responseCallback: http.expectedStatuses(200, 304),
});

// Without this a run that made no call would have no failed check.
export function setup() {
  if (http.get(`${URL}/products/${PRODUCTS}`).status !== 200) fail(cannotRead);
}

export function get() {
  const id = String(hotId());
  const tag = held.get(id);
  const response = http.get(`${URL}/products/${id}`, params('get', tag ? { 'If-None-Match': tag } : {}));
  const etag = response.headers['Etag'];
  check(response, {
    'get is OK': (r) => r.status === 200 || (tag && r.status === 304),
    'get answers with the product': (r) => (r.status === 304 ? etag === tag && !r.body : r.json('id') === id && etag !== tag),
    'get names the tier that answered': (r) => /^hotshelf; /.test(r.headers['Cache-Status']),
  });
  if (etag) held.set(id, etag);
}

export function batch() {
  const ids = hotIds();
  const response = http.get(`${URL}/products:batchGet?${ids.map((id) => `ids=${id}`).join('&')}`, params('batch'));
  check(response, {
    'batch is OK': (r) => r.status === 200,
    'batch answers in order': (r) => {
      const products = r.json('products');
      return products && products.length === ids.length && products.every((product, i) => product.id === ids[i]);
    },
  });
}

export function update() {
  const id = String(hotId());
  const body = JSON.stringify({ price: newPrice() });
  const json = params('update', { 'Content-Type': 'application/json' });
  const updated = http.patch(`${URL}/products/${id}?updateMask=price`, body, json);
  check(updated, { 'update is OK': (r) => r.status === 200 });
  if (updated.status !== 200) return;
  const version = updated.json('version');
  const read = http.get(`${URL}/products/${id}`, params('read', { 'Min-Version': version }));
  check(read, { 'a writer reads its write': (r) => r.status === 200 && BigInt(r.json('version')) >= BigInt(version) });
}
