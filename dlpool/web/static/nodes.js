// Draws rows of nodes with their workers.

import { runAction } from "./actions.js";
import { bar, button, el, setText, setBar, show, confirmButton } from "./dom.js";
import { joined } from "./jobs.js";
import { reconcile } from "./lists.js";
import { agoText, now, pluralText, sizeText } from "./texts.js";

const LOST = "lost";
const PILLS = { working: "good", [LOST]: "bad" };
const DOTS = 16; // a worker with more slots is shown as numbers

export const isLiving = (node) => node.state !== LOST && Number.isFinite(node.slots);
export const nodeKey = (node) => `${node.node ?? node.sid} ${node.state === LOST ? LOST : ""}`;

/** Return the nodes with lost ones first, because they need attention. */
export const inOrder = (nodes) => [...nodes.filter((node) => node.state === LOST), ...nodes.filter((node) => node.state !== LOST)];

/** Return the bytes per second of a node, null if unknown. */
export const rateOf = (node, rates) => rates.record(`node ${node.sid}`, node.received, now()).rate;

export function nodeRow(node) {
  const row = el("li", { class: "row node" });
  const name = node.node ?? "?";
  const run = (text, verb) => () => runAction(`${text} ${name}`, `/nodes/${encodeURIComponent(name)}/${verb}`, row);
  row.drain = confirmButton("Drain", `Drain ${name}`, run("Drain", "drain"));
  row.resume = button("Resume", `Resume ${name}`, run("Resume", "resume"));
  row.forget = confirmButton("Forget", `Forget ${name}`, run("Forget", "forget"));
  row.append(
    el("div", { class: "title" }, el("strong", { class: "name", title: name }, el("bdi", { text: name })), el("span", { class: "pill" }), el("div", { class: "buttons" }, row.drain, row.resume, row.forget)),
    bar(`Busy slots of ${name}`), el("p", { class: "meta" }), el("ul", { class: "workers", "aria-label": `Workers of ${name}` }),
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
  setText(pill, isLost ? joined([`lost ${node.seen_at ? agoText(node.seen_at) : ""}`.trim()]) : isThere ? node.state : `${node.state}, away`);
  pill.dataset.state = PILLS[node.state] ?? "wait";
  show(row.querySelector(".bar"), isThere);
  setBar(row.querySelector(".bar"), isThere && node.slots ? node.busy / node.slots : 0);
  setText(row.querySelector(".meta"), isThere ? joined([
    `${node.busy} of ${pluralText(node.slots, "slot")}`,
    Number.isFinite(node.workers) ? pluralText(node.workers, "worker") : "",
    rate === null ? "" : `${sizeText(rate)}/s`,
    Number.isFinite(node.free) ? `${sizeText(node.free)} free` : "",
    node.version ?? "",
  ]) : isLost ? "No heartbeat. Other nodes take its jobs over." : "");
  reconcile(row.querySelector(".workers"), isThere ? node.workers_info ?? [] : [], (one) => one.pid, workerRow, updateWorker);
}

const workerRow = () => el("li", {}, el("span", { class: "slots", "aria-hidden": "true" }), el("span", { class: "memory" }), el("span", { class: "hidden" }));

function updateWorker(row, { pid, busy = 0, slots = 0, memory, state }) {
  const [dots, said, spoken] = row.children;
  const text = `${busy} of ${pluralText(slots, "slot")} busy`;
  row.title = joined([`process ${pid}`, state, text]);
  setText(spoken, `process ${pid}, ${joined([state, text])}`);
  setText(said, joined([slots > DOTS ? `${busy}/${slots}` : "", Number.isFinite(memory) ? sizeText(memory) : "", state && !["ready", "working", "busy", "idle"].includes(state) ? state : ""]));
  const shown = slots > DOTS ? 0 : slots;
  while (dots.children.length > shown) dots.lastChild.remove();
  while (dots.children.length < shown) dots.append(el("i"));
  [...dots.children].forEach((dot, place) => dot.classList.toggle("busy", place < busy));
}
