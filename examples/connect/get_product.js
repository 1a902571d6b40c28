// Calls every method of ProductService with each transport of Connect: node get_product.js URL
//
// Fails when an answer is not what proto/hotshelf/v1/product_service.proto promises.

import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from '@connectrpc/connect-node';

import { callEveryMethod } from './every_method.js';

// One of them is enough for a service. HTTP/2 carries many calls on one connection.
function transports(baseUrl) {
  return {
    'Connect': createConnectTransport({ baseUrl, httpVersion: '2' }),
    'Connect, reads by GET': createConnectTransport({ baseUrl, httpVersion: '2', useHttpGet: true }),
    'Connect, as JSON, over HTTP/1.1': createConnectTransport({ baseUrl, httpVersion: '1.1', useBinaryFormat: false }),
    'gRPC': createGrpcTransport({ baseUrl }),
    'gRPC-Web over HTTP/1.1': createGrpcWebTransport({ baseUrl, httpVersion: '1.1' }),
  };
}

if (process.argv.length !== 3) {
  console.error('usage: node get_product.js http://localhost:50051');
  process.exit(2);
}
for (const [name, transport] of Object.entries(transports(process.argv[2]))) {
  console.log(`--- ${name}`);
  await callEveryMethod(transport, console.log);
}
console.log('All as promised.');
// A connection that is kept for further calls would keep the process, too.
process.exit(0);
