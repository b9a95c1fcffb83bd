// Draws the overview of the queue.

import { byId, el, setText, show } from "./dom.js";
import { failureRow, grouped, updateFailure } from "./failures.js";
import { addSample } from "./history.js";
import { jobKey, jobRow, runningRow, updateListed, updateRunning } from "./jobs.js";
import { fill, reconcile, showCount } from "./lists.js";
import { inOrder, isLiving, nodeKey, nodeRow, rateOf, updateNode } from "./nodes.js";
import { Rates } from "./rates.js";
import { agoText, clockText, countText, durationText, now, sizeText } from "./texts.js";

const LIMIT = 50; // rows of each list, if the overview has no list_limits
const UTC = "since midnight (UTC)";
const rates = new Rates();

export function drawAll(overview) {
  const { figures, today, listed } = overview;
  const waiting = figures.waiting ?? figures.backlog + figures.reserved + figures.ready_limited + figures.ready_high + figures.ready_normal + figures.ready_low;
  const limit = overview.list_limits ?? LIMIT;
  drawTiles([
    { name: "Waiting", count: waiting }, { name: "Running", count: figures.running },
    { name: "Delayed", count: figures.delayed + figures.throttled }, { name: "Paused", count: figures.paused },
    { name: "Done today", count: today.succeeded ?? 0, title: UTC },
    { name: "Failed today", count: today.failed ?? 0, title: UTC, state: (today.failed ?? 0) > 0 ? "bad" : "", href: "#failed-title" },
  ]);
  const rate = drawNodes(overview);
  drawRunning(overview, limit);
  drawFailed(overview, limit);
  const state = byId("state").value;
  const totals = { queued: waiting, delayed: figures.delayed + figures.throttled, ...figures };
  delete totals.failed;
  show(byId("state").querySelector("[value=cancelled]"), figures.cancelled !== undefined);
  fill("listed", { items: listed, key: jobKey, make: (job) => jobRow(job, job.state === "cancelled"), update: updateListed, none: "No such jobs." });
  showCount("listed-count", listed.length, totals[state] ?? listed.length, limit);
  setText(byId("depth-now"), `${countText(waiting)} waiting, ${countText(figures.running)} running`);
  setText(byId("rate-now"), rate === null ? "" : `${sizeText(rate)}/s`);
  rates.sweep();
  addSample({ at: now(), waiting, running: figures.running, rate });
}

/** Show whether the queue is paused. */
export function drawHalted(overview) {
  const isHalted = overview?.is_halted ?? false;
  const since = overview?.halted_at;
  const [shown, hidden] = isHalted ? ["halted", "halt"] : ["halt", "halted"];
  show(byId(shown), overview !== null);
  show(byId(hidden), false, isHalted ? byId("unhalt") : byId("halt"));
  setText(byId("halted-text"), since ? `The queue is paused since ${clockText(since)}: no job begins.` : "The queue is paused: no job begins.");
  byId("halted-text").title = since ? agoText(since) : "";
}

function drawTiles(figures) {
  const make = ({ name, title = "", href }) => el("div", { title }, el("dt", { text: name }), el("dd", {}, href ? el("a", { href }) : el("span")));
  reconcile(byId("tiles"), figures, (one) => one.name, make, (tile, { count, state = "" }) => {
    setText(tile.lastChild.firstChild, countText(count));
    tile.dataset.state = state;
  });
}

/** Draw the nodes and return their total bytes per second, null if unknown. */
function drawNodes(overview) {
  const { nodes } = overview;
  const known = new Map(nodes.map((node) => [node, isLiving(node) ? rateOf(node, rates) : null]));
  fill("nodes", { items: inOrder(nodes), key: nodeKey, make: nodeRow, update: (row, node) => updateNode(row, node, known.get(node)), none: "No node is running: start dlpool-supervisor." });
  showCount("nodes-count", nodes.length, nodes.length, Infinity);
  const hosts = [
    ...Object.entries(overview.waiting_hosts).map(([host, count]) => `${countText(count)} ${count === 1 ? "job waits" : "jobs wait"} for a slot at ${host}`),
    ...Object.entries(overview.held_hosts).map(([host, seconds]) => `requests to ${host} pause for ${durationText(seconds)}`),
  ];
  reconcile(byId("hosts"), hosts, (text) => text.replace(/\d+/g, ""), () => el("li"), setText);
  const all = [...known.values()].filter((rate) => rate !== null);
  return all.length ? all.reduce((sum, rate) => sum + rate, 0) : nodes.some(isLiving) ? null : 0;
}

function drawRunning({ running, nodes, figures }, limit) {
  const living = new Map(nodes.filter(isLiving).map((node) => [node.sid, node]));
  fill("running", { items: running, key: jobKey, make: runningRow, update: (row, job) => updateRunning(row, job, living, rates), none: "No running jobs." });
  showCount("running-count", running.length, figures.running, limit);
}

function drawFailed({ failed, figures, list_limits: known }, limit) {
  const hasBatch = known !== undefined; // servers that send list_limits have /jobs/batch
  fill("failed", {
    items: grouped(failed, hasBatch), key: (item) => item.key, make: (item) => failureRow(item, hasBatch),
    update: (row, item) => updateFailure(row, item, hasBatch), none: "No failures.",
  });
  showCount("failed-count", failed.length, figures.failed, limit);
  byId("failed-part").classList.toggle("none-there", failed.length === 0);
}
