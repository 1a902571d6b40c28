// Calls every method of ProductService: node get_product.js ADDRESS
//
// Fails when an answer is not what proto/hotshelf/v1/product_service.proto promises.
'use strict';

const assert = require('node:assert/strict');
const path = require('node:path');

const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTOS = path.join(__dirname, '..', '..', 'proto');
const definitions = protoLoader.loadSync(
  ['hotshelf/v1/product_service.proto', 'google/rpc/status.proto', 'google/rpc/error_details.proto'],
  { includeDirs: [PROTOS], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
);
const { ProductService } = grpc.loadPackageDefinition(definitions).hotshelf.v1;

// The greatest possible id, which no product has.
const ABSENT_ID = '9223372036854775807';

// The deadline of each call, 10 seconds from now. A call without a deadline can wait for ever.
const deadline = () => Date.now() + 10_000;

// Makes a unary call. Resolves to the answer and its cache-status, from the initial metadata.
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    let metadata;
    client[method](request, { deadline: deadline() }, (error, answer) => {
      if (error) reject(error);
      else resolve({ answer, cacheStatus: metadata?.get('cache-status').join(', ') ?? '' });
    }).on('metadata', (received) => {
      metadata = received;
    });
  });
}

// The google.rpc.ErrorInfo that every error of hotshelf has.
function errorInfo(error) {
  const [bytes] = error.metadata.get('grpc-status-details-bin');
  assert(bytes, `no details in ${error}`);
  const { details } = definitions['google.rpc.Status'].deserialize(bytes);
  const info = details.find((detail) => detail.type_url.endsWith('/google.rpc.ErrorInfo'));
  assert(info, `no ErrorInfo in ${error}`);
  return definitions['google.rpc.ErrorInfo'].deserialize(info.value);
}

async function expectError(promise, code, reason) {
  const error = await promise.then(
    () => assert.fail(`a success, not ${grpc.status[code]}`),
    (rejection) => rejection,
  );
  assert.equal(error.code, code, `${error}`);
  const info = errorInfo(error);
  console.log(`  ${grpc.status[code]}: ${error.details}`);
  console.log(`  reason ${info.reason}, domain ${info.domain}, metadata ${JSON.stringify(info.metadata)}`);
  assert.equal(info.reason, reason);
  assert.equal(info.domain, 'hotshelf');
  return info;
}

async function readAndWrite(client) {
  console.log('CreateProduct');
  const price = { currency_code: 'EUR', units: '24', nanos: 950_000_000 };
  const { answer: created } = await call(client, 'CreateProduct', { product: { name: 'Enamel teapot', price } });
  console.log(`  product ${created.id}, version ${created.version}`);
  assert(BigInt(created.id) > 0n && BigInt(created.version) > 0n);
  assert.equal(created.name, 'Enamel teapot');
  assert.deepEqual(created.price, price);

  console.log('GetProduct, with the written version as min_version');
  for (let i = 0; i < 2; i++) {
    const request = { id: created.id, min_version: created.version };
    const { answer: got, cacheStatus } = await call(client, 'GetProduct', request);
    console.log(`  version ${got.version}, cache-status: ${cacheStatus}`);
    assert.deepEqual(got, created);
    assert.match(cacheStatus, /^hotshelf; /);
  }

  console.log('BatchGetProducts, with a repeated id and an id without a product');
  const { answer: batch } = await call(client, 'BatchGetProducts', { ids: [created.id, ABSENT_ID, created.id] });
  const found = batch.products.map((product) => product.id);
  console.log(`  found ${found}, not found ${batch.not_found_ids}`);
  assert.deepEqual(found, [created.id]);
  assert.deepEqual(batch.not_found_ids, [ABSENT_ID]);

  console.log('UpdateProduct, with the current version as expected_version');
  const reprice = {
    product: { id: created.id, price: { currency_code: 'EUR', units: '19' } },
    update_mask: { paths: ['price'] },
    expected_version: created.version,
  };
  const { answer: updated } = await call(client, 'UpdateProduct', reprice);
  console.log(`  version ${updated.version}`);
  assert(BigInt(updated.version) > BigInt(created.version));
  assert.equal(updated.price.units, '19');
  assert.equal(updated.name, created.name);

  console.log('UpdateProduct again: expected_version is not the current version any more');
  const info = await expectError(call(client, 'UpdateProduct', reprice), grpc.status.ABORTED, 'VERSION_MISMATCH');
  assert.equal(info.metadata.current_version, updated.version);
  assert.equal(info.metadata.expected_version, created.version);
  return created.id;
}

async function watchHotKeys(client) {
  console.log('StreamHotKeys, two snapshots');
  const request = { limit: 3, interval: { nanos: 100_000_000 } };
  const stream = client.StreamHotKeys(request, { deadline: deadline() });
  let snapshots = 0;
  // Leaving the loop cancels the call, which would not end by itself.
  for await (const { observe_time: at, hot_keys: keys } of stream) {
    const hot = keys.map((key) => `${key.product_id} (${key.requests_per_second.toFixed(1)}/s)`).join(', ');
    const time = new Date(Number(at.seconds) * 1000 + at.nanos / 1e6).toISOString();
    console.log(`  ${time}: ${hot || 'nothing is hot'}`);
    assert(keys.length <= 3);
    assert.deepEqual(keys.map((key) => key.rank), keys.map((_, i) => i + 1));
    snapshots += 1;
    if (snapshots === 2) break;
  }
  assert.equal(snapshots, 2);
}

async function main(address) {
  const client = new ProductService(address, grpc.credentials.createInsecure());
  try {
    const id = await readAndWrite(client);
    await watchHotKeys(client);

    console.log('DeleteProduct');
    await call(client, 'DeleteProduct', { id });
    await expectError(call(client, 'GetProduct', { id, latest: true }), grpc.status.NOT_FOUND, 'PRODUCT_NOT_FOUND');
    console.log('All as promised.');
  } finally {
    client.close();
  }
}

if (process.argv.length !== 3) {
  console.error('usage: node get_product.js ADDRESS');
  process.exitCode = 2;
} else {
  main(process.argv[2]).catch((error) => {
    console.error('UNEXPECTED:', error);
    process.exitCode = 1;
  });
}
