// The page: one request a tick brings all that is shown.

import { ask, setToken, tell } from "./api.js";
import { draw, SPAN_S } from "./charts.js";
import { agoText, bar, byId, durationText, el, reconcile, say, setBar, show, sizeText, sureButton } from "./dom.js";
import { startUploads } from "./uploads.js";

const API = "/api/v1";
const TICK_MS = 1500;
const HIDDEN_MS = 10_000;
const LONGEST_WAIT_MS = 10_000;
const RATE_S = 6; // rates are over so long
const HISTORY = "dlpool.history";

let etag = "";
let timer = 0;
let failures = 0;
let isLooking = false;
let overview = null;
let history = readHistory();
const marks = new Map(); // of jobs and nodes: [[seconds, bytes], ...]

// --- looking ---------------------------------------------------------------------------------------------------------

async function look() {
  clearTimeout(timer);
  if (isLooking) return;
  isLooking = true;
  let wait = document.hidden ? HIDDEN_MS : TICK_MS;
  try {
    const answer = await ask(`${API}/overview?state=${byId("state").value}`, { etag });
    failures = 0;
    if (answer) ({ value: overview, etag } = answer);
    troubled("");
    drawAll();
  } catch (error) {
    if (error.status === 401) return signIn(error);
    failures += 1;
    etag = "";
    wait = Math.max(wait, (error.retryAfter ?? 0) * 1000, Math.min(LONGEST_WAIT_MS, 1000 * 2 ** failures));
    troubled(error.status === undefined ? `the page is broken: ${error.message}` : error.message);
  } finally {
    isLooking = false;
  }
  timer = setTimeout(look, wait);
}

/** The next look now: something was changed here. */
function lookSoon() {
  etag = "";
  clearTimeout(timer);
  timer = setTimeout(look, 150);
}

function troubled(text) {
  const isHalted = overview?.is_halted ?? false;
  byId("health").dataset.state = text ? "bad" : isHalted ? "wait" : "good";
  say(byId("health"), text ? "Offline" : isHalted ? "Paused" : "Live");
  show(byId("banner"), Boolean(text));
  say(byId("banner"), text ? `${text[0].toUpperCase()}${text.slice(1)}. This page goes on by itself.` : "");
  document.body.classList.toggle("stale", Boolean(text));
}

function signIn(error) {
  show(byId("login"), true);
  show(byId("main"), false);
  byId("health").dataset.state = "wait";
  say(byId("health"), "Signed out");
  say(byId("login-said"), sessionStorage.getItem("dlpool.token") ? error.message : "");
  byId("token").focus();
}

/** Do something, and say in the row or the banner why it could not be done. */
async function act(path, body, row) {
  try {
    await tell(API + path, body);
    if (row) say(row.querySelector(".said"), "");
  } catch (error) {
    const said = row?.querySelector(".said");
    if (said) say(said, error.message);
    else troubled(error.message);
  }
  lookSoon();
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function drawAll() {
  const { figures, today, running, failed, listed, nodes } = overview;
  const now = Date.now() / 1000;
  const rate = nodes.reduce((sum, node) => sum + (rateOf(`node ${node.sid}`, node.received, now) ?? 0), 0);
  const waiting = figures.backlog + figures.reserved + figures.ready_limited + figures.ready_high + figures.ready_normal + figures.ready_low;
  tiles([
    ["Waiting", waiting], ["Running", figures.running], ["Delayed", figures.delayed + figures.parked], ["Paused", figures.paused],
    ["Done today", today.succeeded ?? 0], ["Failed today", today.failed ?? 0, (today.failed ?? 0) > 0 ? "bad" : ""],
  ]);
  remember({ at: now, waiting, running: figures.running, rate: performance.now() > RATE_S * 1000 ? rate : null });
  draw(byId("depth"), history, ["waiting", "running"], (value) => countText(value));
  draw(byId("rate"), history, ["rate"], (value) => `${sizeText(value)}/s`.replace("0 B/s", "0"), true);
  say(byId("depth-now"), `${countText(waiting)} waiting, ${countText(figures.running)} running`);
  say(byId("rate-now"), `${sizeText(rate)}/s`);
  say(byId("running-count"), countText(figures.running));
  say(byId("failed-count"), figures.failed ? countText(figures.failed) : "");
  say(byId("nodes-count"), nodes.length ? countText(nodes.length) : "");
  const names = new Map(nodes.map((node) => [node.sid, node.node]));
  reconcile(byId("running"), running, (job) => job.id, runningRow, (row, job) => updateRunning(row, job, names, now));
  reconcile(byId("failed"), failed, (job) => job.id, failedRow, updateFailed);
  reconcile(byId("listed"), listed, (job) => job.id ?? `${job.url} ${job.save_path}`, listedRow, updateListed);
  reconcile(byId("nodes"), nodes, (node) => node.sid ?? node.node, nodeRow, (row, node) => updateNode(row, node, now));
  const hosts = [
    ...Object.entries(overview.waiting_hosts).map(([host, count]) => `${countText(count)} jobs wait for a slot at ${host}`),
    ...Object.entries(overview.held_hosts).map(([host, seconds]) => `${host} is not asked for ${durationText(seconds)}`),
  ];
  reconcile(byId("hosts"), hosts, (text) => text.replace(/\d+/g, ""), () => el("li"), say);
  say(byId("halt"), overview.is_halted ? "Resume queue" : "Pause queue");
  show(byId("halt"), true);
  for (const list of document.querySelectorAll("ul[data-empty]")) list.dataset.seen = "yes";
}

function tiles(figures) {
  reconcile(byId("tiles"), figures, ([name]) => name, ([name]) => el("div", {}, el("dt", { text: name }), el("dd")), (tile, [, count, state]) => {
    say(tile.lastChild, countText(count));
    tile.dataset.state = state ?? "";
  });
}

const countText = (count) => Math.round(count).toLocaleString("en");

/** Bytes a second of something that counts up, over the last seconds; null before there are two marks. */
function rateOf(name, bytes, now) {
  if (!Number.isFinite(bytes)) return null;
  let seen = marks.get(name) ?? [];
  if (seen.length && bytes < seen.at(-1)[1]) seen = [];
  if (seen.at(-1)?.[0] !== now) seen.push([now, bytes]);
  while (seen.length > 2 && seen[1][0] < now - RATE_S) seen.shift();
  marks.set(name, seen);
  if (marks.size > 1000) marks.delete(marks.keys().next().value);
  const [at, first] = seen[0];
  return now - at > 0.5 ? (bytes - first) / (now - at) : null;
}

function remember(sample) {
  history = [...history.filter((one) => one.at > sample.at - SPAN_S && one.at <= sample.at), sample];
  try {
    sessionStorage.setItem(HISTORY, JSON.stringify(history));
  } catch {
    // no room: after a reload the charts begin anew
  }
}

function readHistory() {
  try {
    const found = JSON.parse(sessionStorage.getItem(HISTORY) ?? "[]");
    return found.filter((one) => ["at", "waiting", "running"].every((name) => Number.isFinite(one[name])));
  } catch {
    return [];
  }
}

// --- rows ------------------------------------------------------------------------------------------------------------

/** A row of a job: what it makes, where from, what can be done with it. */
function jobRow(job, ...buttons) {
  const name = job.save_path ?? job.id;
  const row = el("li", { class: "row" });
  const made = buttons.map(([text, path, isSure]) => {
    const run = () => act(path, {}, row);
    const label = `${text} ${name}`;
    return isSure ? sureButton(text, label, run) : el("button", { type: "button", class: "quiet", text, "aria-label": label, on: { click: run } });
  });
  row.append(
    el("div", { class: "title" }, el("strong", { text: name ?? "?", title: name ?? "" }), el("div", { class: "buttons" }, ...made)),
    el("p", { class: "url", text: job.url ?? job.problem ?? "", title: job.url ?? "" }), el("p", { class: "meta" }), el("p", { class: "said", role: "status" }),
  );
  return row;
}

function runningRow(job) {
  const row = jobRow(job, ["Pause", `/jobs/${job.id}/pause`], ["Cancel", `/jobs/${job.id}/cancel`, true]);
  row.insertBefore(bar(`Progress of ${job.save_path}`), row.querySelector(".meta"));
  return row;
}

function updateRunning(row, job, names, now) {
  const { done = 0, size = null, phase = "", connections } = job.progress ?? {};
  const rate = rateOf(`job ${job.id}`, done, now);
  setBar(row.querySelector(".bar"), size ? Math.min(1, done / size) : null);
  say(row.querySelector(".meta"), [
    size ? `${Math.floor((100 * done) / size)} % of ${sizeText(size)}` : sizeText(done),
    rate ? `${sizeText(rate)}/s` : "",
    rate && size ? `${durationText((size - done) / rate)} left` : "",
    phase === "downloading" && connections ? `${connections} connections` : phase,
    job.attempts > 1 ? `attempt ${job.attempts}` : "",
    names.get(job.owner) ?? "",
    job.flag ? `${job.flag} was asked for` : "",
  ].filter(Boolean).join(" · "));
}

const failedRow = (job) => {
  const row = jobRow(job, ["Retry", `/jobs/${job.id}/retry`]);
  row.insertBefore(el("p", { class: "reason" }), row.querySelector(".meta"));
  return row;
};

function updateFailed(row, job) {
  say(row.querySelector(".reason"), reasonOf(job) || job.state);
  say(row.querySelector(".meta"), [job.ended_at ? agoText(job.ended_at) : "", attemptsText(job), job.note?.label ?? ""].filter(Boolean).join(" · "));
}

const reasonOf = (job) => job.problem ?? (typeof job.note?.message === "string" ? job.note.message : "");
const attemptsText = (job) => (job.attempts ? `${job.attempts} ${job.attempts === 1 ? "attempt" : "attempts"}` : "");

const VERBS = {
  queued: [["First", "promote"], ["Pause", "pause"], ["Cancel", "cancel", true]],
  delayed: [["Now", "retry"], ["Pause", "pause"], ["Cancel", "cancel", true]],
  paused: [["Resume", "resume"], ["Cancel", "cancel", true]],
};

function listedRow(job) {
  const verbs = job.id ? VERBS[job.state] ?? [] : []; // in the intake list it has no id yet
  return jobRow(job, ...verbs.map(([text, verb, isSure]) => [text, `/jobs/${job.id}/${verb}`, isSure]));
}

function updateListed(row, job) {
  const times = { queued: ["since", job.created_at], succeeded: ["", job.ended_at], paused: ["", job.ended_at] };
  const [word, moment] = times[job.state] ?? ["", null];
  const due = job.state === "delayed" && job.due_at ? (Date.parse(job.due_at) - Date.now()) / 1000 : null;
  say(row.querySelector(".meta"), [
    job.state === "succeeded" && Number.isFinite(job.note?.size) ? sizeText(job.note.size) : "",
    job.state === "succeeded" && job.note?.seconds ? `in ${durationText(job.note.seconds)}` : "",
    moment ? agoText(moment) : word && "in the intake list",
    due === null ? "" : due > 0 ? `in ${durationText(due)}` : "due",
    job.priority === "normal" ? "" : `${job.priority} priority`,
    job.state === "delayed" ? reasonOf(job) : "",
  ].filter(Boolean).join(" · "));
}

function nodeRow(node) {
  const row = el("li", { class: "row node" });
  const path = (verb) => `/nodes/${encodeURIComponent(node.node)}/${verb}`;
  row.drain = sureButton("Drain", `Drain ${node.node}`, () => act(path("drain"), {}, row));
  row.resume = el("button", { type: "button", class: "quiet", text: "Resume", "aria-label": `Resume ${node.node}`, on: { click: () => act(path("resume"), {}, row) } });
  row.append(
    el("div", { class: "title" }, el("strong", { text: node.node ?? "?", title: node.node ?? "" }), el("span", { class: "pill" }), el("div", { class: "buttons" }, row.drain, row.resume)),
    bar(`Slots of ${node.node} that are busy`), el("p", { class: "meta" }), el("p", { class: "said", role: "status" }),
  );
  return row;
}

function updateNode(row, node, now) {
  const isThere = Number.isFinite(node.slots);
  show(row.drain, !node.is_drained);
  show(row.resume, node.is_drained);
  const pill = row.querySelector(".pill");
  say(pill, isThere ? node.state : `${node.state}, away`);
  pill.dataset.state = node.state === "working" ? "good" : "wait";
  show(row.querySelector(".bar"), isThere);
  setBar(row.querySelector(".bar"), isThere && node.slots ? Math.min(1, node.busy / node.slots) : 0);
  const rate = rateOf(`node ${node.sid}`, node.received, now);
  say(row.querySelector(".meta"), isThere ? [
    `${node.busy} of ${node.slots} slots`,
    Number.isFinite(node.workers) ? `${node.workers} ${node.workers === 1 ? "worker" : "workers"}` : "",
    rate === null ? "" : `${sizeText(rate)}/s`,
    Number.isFinite(node.free) ? `${sizeText(node.free)} free` : "",
    node.version ?? "",
  ].filter(Boolean).join(" · ") : "");
}

// --- what a person does ----------------------------------------------------------------------------------------------

async function push(event) {
  event.preventDefault();
  const form = event.target;
  const { url, save_path: savePath, ...own } = Object.fromEntries(new FormData(form));
  const given = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== "").map(([name, value]) =>
    [name, name === "limit_rate" && /^\d+$/.test(value) ? Number(value) : value]));
  const said = byId("push-said");
  said.dataset.state = "";
  say(said, "Queueing");
  try {
    const { id } = await tell(`${API}/jobs`, { url, save_path: savePath, dlpool: given });
    said.dataset.state = "good";
    say(said, `Queued as ${id}`);
    form.reset();
    byId("url").focus();
  } catch (error) {
    said.dataset.state = "bad";
    say(said, error.message);
  }
  lookSoon();
}

byId("push").addEventListener("submit", push);
byId("state").addEventListener("change", lookSoon);
byId("halt").addEventListener("click", () => act(`/queue/${overview?.is_halted ? "resume" : "pause"}`, {}));
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token").value.trim());
  location.reload();
});
document.addEventListener("visibilitychange", () => document.hidden || look());
window.addEventListener("online", look);
look();
startUploads();
