// The live page of one instance. Every second an event brings the counters; rates and percentiles are differences between
// events. Text from products and callers is set by textContent only.
"use strict";

const KEPT = 61;
const events = [];
let lastEvent = 0;
const history = { calls: [], p99: [] };
const $ = (id) => document.getElementById(id);

function text(id, value) {
  const node = $(id);
  if (node.textContent !== value) node.textContent = value;
}

// The sum of the series of a metric whose labels match.
function sum(event, name, match = {}) {
  let total = 0;
  for (const series of event.metrics[name] || []) {
    if (Object.keys(match).every((label) => [].concat(match[label]).includes(series.labels[label]))) total += series.value;
  }
  return total;
}

// The event of `seconds` ago, or the oldest one.
function ago(seconds) {
  const newest = events[events.length - 1];
  return events.find((event) => event.at >= newest.at - seconds * 1000 - 200);
}

function rate(name, match, seconds = 3) {
  const newest = events[events.length - 1], before = ago(seconds);
  const passed = (newest.at - before.at) / 1000;
  return passed > 0 ? (sum(newest, name, match) - sum(before, name, match)) / passed : 0;
}

// The buckets of a histogram, counted since `before`, summed over the series that match.
function buckets(before, name, match) {
  const counts = new Map();
  const add = (event, sign) => {
    for (const series of event.metrics[name] || []) {
      if (!Object.keys(match).every((label) => series.labels[label] === match[label])) continue;
      for (const [bound, count] of series.buckets) counts.set(bound, (counts.get(bound) || 0) + sign * count);
      counts.set(Infinity, (counts.get(Infinity) || 0) + sign * series.count);
    }
  };
  add(events[events.length - 1], 1);
  add(before, -1);
  return [...counts].sort((a, b) => a[0] - b[0]);
}

// As histogram_quantile does it: linear within a bucket. Null without observations.
function quantile(list, q) {
  const all = list.length ? list[list.length - 1][1] : 0;
  if (all <= 0) return null;
  let low = 0, below = 0;
  for (const [bound, count] of list) {
    if (count >= q * all) return bound === Infinity ? low : low + ((bound - low) * (q * all - below)) / Math.max(count - below, 1e-9);
    low = bound; below = count;
  }
  return low;
}

function number(value) {
  if (value >= 1e6) return (value / 1e6).toFixed(1) + " M";
  if (value >= 1e4) return (value / 1e3).toFixed(0) + " k";
  if (value >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(1);
}
function bytes(value) { return value >= 1e6 ? (value / 1e6).toFixed(0) + " MB" : value >= 1e3 ? (value / 1e3).toFixed(0) + " kB" : value.toFixed(0) + " B"; }
function time(seconds) {
  if (seconds === null) return "–";
  if (seconds < 0.001) return (seconds * 1e6).toFixed(0) + " µs";
  if (seconds < 1) return (seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0) + " ms";
  if (seconds < 120) return seconds.toFixed(1) + " s";
  return seconds < 7200 ? (seconds / 60).toFixed(0) + " min" : seconds < 172800 ? (seconds / 3600).toFixed(0) + " h" : (seconds / 86400).toFixed(0) + " d";
}
function percent(part) { return part === null ? "–" : (part * 100).toFixed(part > 0.9995 || part < 0.0005 ? 0 : 1) + " %"; }

function line(id, values) {
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, index) => `${120 - (values.length - 1 - index) * 2},${(30 - (value / most) * 28).toFixed(1)}`);
  $(id).firstElementChild.setAttribute("points", points.join(" "));
}

// Fills a table body: each row is a list of cells, text or elements; the first is the row's header.
function rows(id, list, nothing, columns) {
  const body = $(id);
  const filled = list.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((cell, index) => {
      const node = document.createElement(index === 0 ? "th" : "td");
      if (index === 0) node.scope = "row";
      if (cell instanceof Node) node.append(cell); else node.textContent = cell;
      if (index > 0 && !(cell instanceof Node)) node.className = "n";
      row.append(node);
    });
    return row;
  });
  if (!filled.length) {
    const row = document.createElement("tr"), cell = document.createElement("td");
    cell.colSpan = columns; cell.className = "empty"; cell.textContent = nothing;
    row.append(cell); filled.push(row);
  }
  body.replaceChildren(...filled);
}

function meter(value, most, label) {
  const node = document.createElement("meter");
  node.max = Math.max(most, 1e-9); node.value = value;
  node.setAttribute("aria-label", label);
  return node;
}

function ranking(id, keys, all) {
  const hottest = keys.length ? keys[0].per_second : 1;
  rows(id, keys.map((key) => {
    const most = all === null ? hottest : Math.max(all, hottest);
    return [key.id, meter(key.per_second, most, percent(key.per_second / most)), number(key.per_second)];
  }), "no product is read now", 3);
}

const LIMITS = [
  ["calls_in_flight", "calls in flight", number], ["connections", "connections", number], ["streams", "streams", number],
  ["hot_entries", "products in memory", number], ["hot_bytes", "bytes of products", bytes], ["recent_changes", "recent changes", number],
  ["unsent_bytes", "bytes not yet sent", bytes], ["incomplete_request_bytes", "bytes of requests", bytes],
  ["postgres_connections", "connections to PostgreSQL", number],
];

// What is wrong, in the words of the operator; nothing if all is well.
function troubles(event) {
  const list = event.reasons.slice();
  const open = sum(event, "hotshelf_redis_breakers_open", { dependency: "commands" });
  if (open > 0) list.push(`Redis: the breaker of ${open === 1 ? "a server" : open + " servers"} is open; reads go to PostgreSQL`);
  if (!sum(event, "hotshelf_hot_lease_valid")) list.push("the outbox is not read: memory is not trusted");
  const lag = sum(event, "hotshelf_change_feed_lag_seconds");
  if (lag > 1) list.push(`changes are known up to ${time(lag)} ago only`);
  if (sum(event, "hotshelf_relay_lag_seconds") > 60) list.push("Redis does not reflect changes of more than a minute ago");
  if (rate("hotshelf_served_stale_total") > 0) list.push("answers are served stale");
  if (rate("hotshelf_shed_total") > 0) list.push("callers are refused");
  return list.concat(event.notes);
}

function show(event) {
  history.calls.push(rate("grpc_server_started_total", {}, 1));
  const reads = buckets(ago(10), "grpc_server_handling_seconds", { grpc_method: "GetProduct" });
  history.p99.push(quantile(reads, 0.99) || 0);
  for (const list of Object.values(history)) if (list.length > KEPT) list.shift();
  line("calls-line", history.calls);
  line("p99-line", history.p99);
  text("calls", number(rate("grpc_server_started_total")));
  text("reads", number(rate("hotshelf_reads_total")));
  text("failed", number(rate("grpc_server_handled_total", { grpc_code: ["Unknown", "DeadlineExceeded", "Internal", "Unavailable", "DataLoss"] })));
  text("refused", number(rate("hotshelf_shed_total")));
  text("flight", number(sum(event, "hotshelf_calls_in_flight")));
  const tiers = ["hot", "redis", "postgres"], all = rate("hotshelf_reads_total");
  tiers.forEach((tier, index) => {
    const part = all > 0 ? rate("hotshelf_reads_total", { served_by: tier }) / all : null;
    text("tier-" + tier, percent(part));
    $("tiers").children[index].style.width = (part || 0) * 100 + "%";
    if (tier === "hot") text("hits", percent(part));
  });
  const lookups = rate("hotshelf_cache_lookups_total", { tier: "redis" });
  text("redis-hits", percent(lookups > 0 ? rate("hotshelf_cache_lookups_total", { tier: "redis", result: "hit" }) / lookups : null));
  text("stale", number(rate("hotshelf_served_stale_total")));
  for (const [id, q] of [["p50", 0.5], ["p90", 0.9], ["p99", 0.99], ["p999", 0.999]]) text(id, time(quantile(reads, q)));
  let worst = null;
  for (const tier of ["hot", "redis"]) {
    const lived = buckets(ago(60), "hotshelf_staleness_seconds", { tier });
    const [half, most] = [quantile(lived, 0.5), quantile(lived, 0.99)];
    text("lived-" + tier, half === null ? "no change" : `${time(half)}, ${time(most)}`);
    if (most !== null) worst = Math.max(worst || 0, most);
  }
  text("lived", time(worst));
  text("changes", number((events[events.length - 1].at > ago(10).at) ? buckets(ago(10), "hotshelf_staleness_seconds", { tier: "redis" }).pop()[1] / ((event.at - ago(10).at) / 1000) : 0));
  text("feed-lag", time(sum(event, "hotshelf_change_feed_lag_seconds")));
  text("relay-lag", time(sum(event, "hotshelf_relay_lag_seconds")));
  ranking("hot-instance", event.hot.instance, rate("hotshelf_reads_total", {}, 10));
  ranking("hot-fleet", event.hot.fleet, null);
  const { fleet_instances: instances, fleet_age_ms: age } = event.hot;
  text("fleet-basis", (instances === 1 ? "The only instance" : instances > 1 ? `All ${instances} instances` : "All instances") + (age > 0 ? `, ${time(age / 1000)} ago` : ""));
  rows("shares", ["loads", "latest", "writes", "operators"].map((share) => {
    const of = (name) => sum(event, "hotshelf_postgres_share_" + name, { share });
    return [share, meter(of("in_use"), of("in_use_limit"), `${of("in_use")} in use`), `${of("in_use")} of ${of("in_use_limit")}`, number(of("waiting")), number(of("waiting_limit"))];
  }), "", 5);
  for (const dependency of ["commands", "ranking"]) {
    const open = sum(event, "hotshelf_redis_breakers_open", { dependency });
    text("breaker-" + dependency, open > 0 ? (open > 1 ? open + " open" : "open") : "closed");
    $("breaker-" + dependency).className = open > 0 ? "bad-text" : "good-text";
  }
  text("redis-connections", `${sum(event, "hotshelf_redis_connected")} of ${sum(event, "hotshelf_redis_connected_limit")}`);
  rows("limits", LIMITS.map(([name, label, unit]) => {
    const [used, most] = [sum(event, "hotshelf_" + name), sum(event, `hotshelf_${name}_limit`)];
    return [label, meter(used, most, `${unit(used)} of ${unit(most)}`), `${unit(used)} of ${unit(most)}`];
  }), "", 3);
  rows("callers", event.callers.map(([count, caller]) => [caller, number(count)]), "no caller was refused", 2);
  const started = sum(event, "process_start_time_seconds");
  text("instance", `${location.host} · ${event.version} · up ${time(Math.max(event.time / 1000 - started, 0))} · ${bytes(sum(event, "process_resident_memory_bytes"))} · ${percent(rate("process_cpu_seconds_total", {}, 5))} of a core`);
  const wrong = troubles(event);
  // Set only when it changes, so that a screen reader is not interrupted each second.
  text("verdict", wrong.length ? wrong.join("; ") : "healthy");
  $("verdict").className = "verdict " + (wrong.length ? "bad" : "good");
}

function connect() {
  const source = new EventSource("/events");
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    const before = events[events.length - 1];
    // Another process: its counters begin at 0.
    if (before && (event.at < before.at || sum(event, "process_start_time_seconds") !== sum(before, "process_start_time_seconds"))) events.length = 0;
    events.push(event);
    if (events.length > KEPT) events.shift();
    lastEvent = Date.now();
    show(event);
  };
  source.onerror = () => {
    // The browser tries again by itself, but not after an answer of another status.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
}
setInterval(() => {
  if (Date.now() - lastEvent > 5000) {
    text("verdict", lastEvent ? "no answer from this instance; trying again" : "no events yet: as many watch as may, or the instance is starting");
    $("verdict").className = "verdict bad";
  }
}, 1000);

function ms(value) { return value === null || value === undefined ? "–" : (value < 0 ? "−" : "") + time(Math.abs(value) / 1000); }

function explained(answer) {
  const copy = (held) => (held ? [held.tombstone ? `deleted, ${held.version}` : String(held.version), ms(held.age_ms), ms(held.soft_ttl_ms), ms(held.hard_ttl_ms)] : ["none", "–", "–", "–"]);
  const table = document.createElement("table"), head = document.createElement("thead"), body = document.createElement("tbody");
  const titles = document.createElement("tr");
  for (const title of ["tier", "version", "state", "age", "soft TTL in", "hard TTL in"]) {
    const cell = document.createElement("th"); cell.scope = "col"; cell.textContent = title; titles.append(cell);
  }
  head.append(titles);
  const { memory, redis, postgres } = answer;
  const tier = (name, state, [version, ...rest]) => [name, version, state, ...rest];
  const changed = (time) => (time ? `changed ${time.slice(0, 16).replace("T", " ")} UTC` : "is there");
  const list = [
    tier("memory", memory.state + (memory.load_in_flight ? ", being loaded" : ""), copy(memory.copy)),
    tier("Redis", redis === null ? "does not answer" : redis.copy ? (redis.usable ? "usable" : "not served") + (redis.leased ? ", being loaded" : "") : redis.leased ? "being loaded" : "empty", copy(redis && redis.copy)),
    tier("PostgreSQL", postgres === null ? "does not answer" : postgres.exists ? changed(postgres.update_time) : "no such product", [postgres && postgres.exists ? postgres.version : "–", "–", "–", "–"]),
  ];
  for (const cells of list) {
    const row = document.createElement("tr");
    cells.forEach((value, index) => {
      const cell = document.createElement(index ? "td" : "th");
      if (!index) cell.scope = "row";
      cell.textContent = value; row.append(cell);
    });
    body.append(row);
  }
  const caption = document.createElement("caption");
  caption.textContent = `Product ${answer.id}`;
  table.append(caption, head, body);
  const scroll = document.createElement("div");
  scroll.className = "scroll"; scroll.tabIndex = 0; scroll.setAttribute("role", "region"); scroll.setAttribute("aria-label", caption.textContent);
  scroll.append(table);
  const served = document.createElement("p"), more = document.createElement("p");
  served.className = "served"; served.textContent = `A read is answered by ${answer.served_from}: ${answer.reason}.`;
  more.className = "hint";
  more.textContent = `Newest version known here: ${answer.floor || "none lately"}. Changes are known up to ${ms(answer.feed_lag_ms)} ago; ` +
    (postgres && postgres.pending_changes ? `${postgres.pending_changes} changes of it are not in Redis yet.` : "none of it waits to reach Redis.");
  return [served, scroll, more];
}

$("ask").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const failed = (why) => { const node = document.createElement("p"); node.className = "bad-text"; node.textContent = why; $("answer").replaceChildren(node); };
  try {
    const response = await fetch("/explain?id=" + encodeURIComponent($("id").value));
    if (!response.ok) return failed(await response.text());
    $("answer").replaceChildren(...explained(await response.json()));
  } catch {
    failed("this instance does not answer");
  }
});
connect();
