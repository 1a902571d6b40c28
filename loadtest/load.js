// The load that products.js and products_http.js have in common: the settings, the rates, and which products are read.

export const ADDRESS = __ENV.ADDRESS || 'localhost:50051';
// Ids are 1 to this, as `make run` imports them.
export const PRODUCTS = Number(__ENV.PRODUCTS || 10000);
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

// `duration`: the metric of how long a call takes.
export const optionsFor = (duration) => ({
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
    [`${duration}{scenario:get}`]: [`p(99)<${P99_MS}`],
  },
});

// Zipf: the n-th hottest product is read n^-SKEW times as often as the hottest.
const cumulative = new Float64Array(PRODUCTS);
for (let n = 0, sum = 0; n < PRODUCTS; n++) {
  sum += (n + 1) ** -SKEW;
  cumulative[n] = sum;
}

export function hotId() {
  const point = Math.random() * cumulative[PRODUCTS - 1];
  let [low, high] = [0, PRODUCTS - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (cumulative[middle] < point) low = middle + 1;
    else high = middle;
  }
  return low + 1;
}

// Distinct ids.
export const hotIds = () => [...new Set(Array.from({ length: BATCH }, hotId))].map(String);

export const newPrice = () => ({ currencyCode: 'USD', units: String(1 + Math.floor(Math.random() * 200)) });

export const cannotRead = `product ${PRODUCTS} cannot be read at ${ADDRESS}: set ADDRESS to the server and PRODUCTS to the number of its products`;
