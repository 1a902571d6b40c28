// Calls every method of ProductService from a browser: http://localhost:8080/?server=http://localhost:50051
//
// The server has to allow the origin of the page: CORS_ORIGINS=http://localhost:8080

import { createConnectTransport, createGrpcWebTransport } from '@connectrpc/connect-web';

import { callEveryMethod } from './every_method.js';

const log = (line) => document.getElementById('log').append(`${line}\n`);
const baseUrl = new URLSearchParams(location.search).get('server') ?? 'http://localhost:50051';

// One of them is enough for a page.
const transports = {
  // A browser may keep what it got by GET, and asks with If-None-Match whether it has changed.
  'Connect, reads by GET': createConnectTransport({ baseUrl, useHttpGet: true }),
  'Connect, binary': createConnectTransport({ baseUrl, useBinaryFormat: true }),
  'gRPC-Web': createGrpcWebTransport({ baseUrl }),
};

async function main() {
  for (const [name, transport] of Object.entries(transports)) {
    log(`--- ${name}`);
    await callEveryMethod(transport, log);
  }
  log('All as promised.');
}

main().catch((error) => log(`UNEXPECTED: ${error}`));
