// Rows of nodes: what they do, with which workers, and those that were lost.

import { act } from "./actions.js";
import { bar, button, el, say, setBar, show, sureButton } from "./dom.js";
import { joined } from "./jobs.js";
import { reconcile } from "./lists.js";
import { agoText, now, pluralText, sizeText } from "./texts.js";

const LOST = "lost";
const PILLS = { working: "good", [LOST]: "bad" };
const DOTS = 16; // slots of a worker that are drawn one by one

export const isLiving = (node) => node.state !== LOST && Number.isFinite(node.slots);
export const nodeKey = (node) => `${node.node ?? node.sid} ${node.state === LOST ? LOST : ""}`;

/** Those that were lost first: they want somebody. */
export const inOrder = (nodes) => [...nodes.filter((node) => node.state === LOST), ...nodes.filter((node) => node.state !== LOST)];

/** Bytes a second of a node, null if nobody knows yet. */
export const rateOf = (node, rates) => rates.note(`node ${node.sid}`, node.received, now()).rate;

export function nodeRow(node) {
  const row = el("li", { class: "row node" });
  const name = node.node ?? "?";
  const run = (text, verb) => () => act(`${text} ${name}`, `/nodes/${encodeURIComponent(name)}/${verb}`, row);
  row.drain = sureButton("Drain", `Drain ${name}`, run("Drain", "drain"));
  row.resume = button("Resume", `Resume ${name}`, run("Resume", "resume"));
  row.forget = sureButton("Forget", `Forget ${name}`, run("Forget", "forget"));
  row.append(
    el("div", { class: "title" }, el("strong", { class: "name", title: name }, el("bdi", { text: name })), el("span", { class: "pill" }), el("div", { class: "buttons" }, row.drain, row.resume, row.forget)),
    bar(`Slots of ${name} that are busy`), el("p", { class: "meta" }), el("ul", { class: "workers", "aria-label": `Workers of ${name}` }),
  );
  return row;
}

export function updateNode(row, node, rate) {
  const isThere = isLiving(node);
  const isLost = node.state === LOST;
  const main = isLost ? row.forget : node.is_drained ? row.resume : row.drain;
  main.hidden = false;
  for (const one of [row.drain, row.resume, row.forget]) if (one !== main) show(one, one === row.forget && !isThere, main);
  const pill = row.querySelector(".pill");
  say(pill, isLost ? joined([`lost ${node.seen_at ? agoText(node.seen_at) : ""}`.trim()]) : isThere ? node.state : `${node.state}, away`);
  pill.dataset.state = PILLS[node.state] ?? "wait";
  show(row.querySelector(".bar"), isThere);
  setBar(row.querySelector(".bar"), isThere && node.slots ? node.busy / node.slots : 0);
  say(row.querySelector(".meta"), isThere ? joined([
    `${node.busy} of ${pluralText(node.slots, "slot")}`,
    Number.isFinite(node.workers) ? pluralText(node.workers, "worker") : "",
    rate === null ? "" : `${sizeText(rate)}/s`,
    Number.isFinite(node.free) ? `${sizeText(node.free)} free` : "",
    node.version ?? "",
  ]) : isLost ? "It says nothing any more. Its jobs are taken over by the others." : "");
  reconcile(row.querySelector(".workers"), isThere ? node.workers_info ?? [] : [], (one) => one.pid, workerRow, updateWorker);
}

const workerRow = () => el("li", {}, el("span", { class: "slots", "aria-hidden": "true" }), el("span", { class: "memory" }), el("span", { class: "hidden" }));

function updateWorker(row, { pid, busy = 0, slots = 0, memory, state }) {
  const [dots, said, spoken] = row.children;
  const text = `${busy} of ${pluralText(slots, "slot")} busy`;
  row.title = joined([`process ${pid}`, state, text]);
  say(spoken, `process ${pid}, ${joined([state, text])}`);
  say(said, joined([slots > DOTS ? `${busy}/${slots}` : "", Number.isFinite(memory) ? sizeText(memory) : "", state && !["ready", "working", "busy", "idle"].includes(state) ? state : ""]));
  const shown = slots > DOTS ? 0 : slots;
  while (dots.children.length > shown) dots.lastChild.remove();
  while (dots.children.length < shown) dots.append(el("i"));
  [...dots.children].forEach((dot, place) => dot.classList.toggle("busy", place < busy));
}
