// Calls every method of ProductService through a transport of Connect; get_product.js and page.js share it.

import { create } from '@bufbuild/protobuf';
import { Code, ConnectError, createClient } from '@connectrpc/connect';

import { ErrorInfoSchema } from './gen/google/rpc/error_details_pb.js';
import { MoneySchema } from './gen/google/type/money_pb.js';
import { ProductService } from './gen/hotshelf/v1/product_service_pb.js';

// The greatest possible id, which no product has.
const ABSENT_ID = 9223372036854775807n;

// The deadline of each call. A call without a deadline can wait for ever.
const timeoutMs = 10_000;

function expect(holds, what) {
  if (!holds) throw new Error(`not as promised: ${what}`);
}

async function expectError(call, code, reason, log) {
  const error = await call.then(
    () => { throw new Error(`a success, not ${Code[code]}`); },
    (rejection) => ConnectError.from(rejection),
  );
  expect(error.code === code, `${error}`);
  // The google.rpc.ErrorInfo that every error of hotshelf has.
  const [info] = error.findDetails(ErrorInfoSchema);
  expect(info?.reason === reason && info.domain === 'hotshelf', `the reason ${info?.reason} of ${error}`);
  log(`  ${Code[error.code]}: ${error.rawMessage} (${info.reason})`);
  return info;
}

// Fails when an answer is not what proto/hotshelf/v1/product_service.proto promises.
export async function callEveryMethod(transport, log) {
  const client = createClient(ProductService, transport);

  log('CreateProduct');
  const price = { currencyCode: 'EUR', units: 24n, nanos: 950_000_000 };
  const created = await client.createProduct({ product: { name: 'Enamel teapot', price } }, { timeoutMs });
  const { id, version } = created;
  log(`  product ${id}, version ${version}`);
  expect(id > 0n && version > 0n, 'an id and a version');
  expect(created.name === 'Enamel teapot' && created.price.nanos === 950_000_000, 'the product');

  log('GetProduct, with the written version as minVersion');
  for (let i = 0; i < 2; i++) {
    let cacheStatus;
    const onHeader = (headers) => { cacheStatus = headers.get('cache-status'); };
    const request = { id, freshness: { case: 'minVersion', value: version } };
    const got = await client.getProduct(request, { timeoutMs, onHeader });
    log(`  version ${got.version}, cache-status: ${cacheStatus}`);
    expect(got.version === version && got.name === created.name, 'what was written');
    expect(cacheStatus?.startsWith('hotshelf; '), `the cache-status ${cacheStatus}`);
  }

  log('BatchGetProducts, with a repeated id and an id without a product');
  const batch = await client.batchGetProducts({ ids: [id, ABSENT_ID, id] }, { timeoutMs });
  const found = batch.products.map((product) => product.id);
  log(`  found ${found}, not found ${batch.notFoundIds}`);
  expect(`${found}` === `${id}` && `${batch.notFoundIds}` === `${ABSENT_ID}`, 'one product and one absent id');

  log('UpdateProduct, with the current version as expectedVersion');
  const reprice = {
    product: { id, price: create(MoneySchema, { currencyCode: 'EUR', units: 19n }) },
    updateMask: { paths: ['price'] },
    expectedVersion: version,
  };
  const updated = await client.updateProduct(reprice, { timeoutMs });
  log(`  version ${updated.version}`);
  expect(updated.version > version && updated.price.units === 19n && updated.name === created.name, 'the new price');

  log('UpdateProduct again: expectedVersion is not the current version any more');
  const info = await expectError(client.updateProduct(reprice, { timeoutMs }), Code.Aborted, 'VERSION_MISMATCH', log);
  expect(info.metadata.current_version === `${updated.version}`, 'the current version in the metadata');

  log('StreamHotKeys, two snapshots');
  const watch = client.streamHotKeys({ limit: 3, interval: { nanos: 100_000_000 } }, { timeoutMs });
  let snapshots = 0;
  // Leaving the loop cancels the call, which would not end by itself.
  for await (const { hotKeys } of watch) {
    const hot = hotKeys.map((key) => `${key.productId} (${key.requestsPerSecond.toFixed(1)}/s)`).join(', ');
    log(`  ${hot || 'nothing is hot'}`);
    expect(hotKeys.length <= 3 && hotKeys.every((key, i) => key.rank === i + 1), 'ranks from 1');
    snapshots += 1;
    if (snapshots === 2) break;
  }
  expect(snapshots === 2, `${snapshots} snapshots`);

  log('DeleteProduct');
  await client.deleteProduct({ id }, { timeoutMs });
  const read = client.getProduct({ id, freshness: { case: 'latest', value: true } }, { timeoutMs });
  await expectError(read, Code.NotFound, 'PRODUCT_NOT_FOUND', log);
}
