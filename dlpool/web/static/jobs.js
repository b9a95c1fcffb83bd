// Draws rows of running, waiting and finished jobs.

import { runAction, runBatch } from "./actions.js";
import { bar, button, el, pathName, setText, setBar, confirmButton } from "./dom.js";
import { agoText, countText, durationText, now, pluralText, sizeText } from "./texts.js";

const STILL_S = 10;
const MOVING = ["connecting", "downloading"];
// For each state: label and verb of each button, and whether it must be confirmed.
const VERBS = {
  running: [["Pause", "pause"], ["Cancel", "cancel", true]],
  queued: [["First", "promote"], ["Pause", "pause"], ["Cancel", "cancel", true]],
  delayed: [["Now", "retry"], ["Pause", "pause"], ["Cancel", "cancel", true]],
  paused: [["Resume", "resume"], ["Cancel", "cancel", true]],
  failed: [["Retry", "retry"]],
  cancelled: [["Retry", "retry"]],
};

/** Return the key of a job's row. It includes the state, because the buttons depend on it. */
export const jobKey = (job) => `${job.state} ${job.id ?? `${job.url} ${job.save_path}`}`;

export const nameOf = (job) => job.save_path ?? job.id ?? "?";
export const reasonOf = (job) => job.problem ?? (typeof job.note?.message === "string" ? job.note.message : "");
export const attemptsText = (job) => (job.attempts ? pluralText(job.attempts, "attempt") : "");
export const joined = (parts) => parts.filter(Boolean).join(" · ");

/** Create the row of a job: its path, its URL and its buttons. `canDismiss`: the server can remove jobs. */
export function jobRow(job, canDismiss = false) {
  const name = nameOf(job);
  const row = el("li", { class: "row" });
  const verbs = job.id ? VERBS[job.state] ?? [] : []; // a job in the intake list has no id yet
  const made = verbs.map(([text, verb, isSure]) => {
    const run = () => runAction(`${text} ${name}`, `/jobs/${encodeURIComponent(job.id)}/${verb}`, row);
    return (isSure ? confirmButton : button)(text, `${text} ${name}`, run);
  });
  if (canDismiss) made.push(button("Dismiss", `Dismiss ${name}`, () => runBatch(`Dismiss ${name}`, "remove", [job.id], row)));
  row.append(
    el("div", { class: "title" }, pathName(name), el("div", { class: "buttons" }, ...made)),
    el("p", { class: "url", text: job.url ?? "", title: job.url ?? "" }), el("p", { class: "meta" }),
  );
  return row;
}

export function runningRow(job) {
  const row = jobRow(job);
  row.insertBefore(bar(`Progress of ${nameOf(job)}`), row.querySelector(".meta"));
  row.append(el("p", { class: "warning" }));
  return row;
}

/** Update the row of a running job. `nodes`: the running nodes by `sid`, which a job has as its `owner`. */
export function updateRunning(row, job, nodes, rates) {
  const { done = 0, size = null, phase = "", connections } = job.progress ?? {};
  const { rate, still } = rates.record(`job ${job.id}`, done, now());
  const node = nodes.get(job.owner);
  const isStill = node && MOVING.includes(phase) && still >= STILL_S;
  setBar(row.querySelector(".bar"), size ? done / size : null);
  row.dataset.state = node && !isStill ? "" : "wait";
  setText(row.querySelector(".meta"), joined([
    size ? `${Math.floor((100 * done) / size)} % of ${sizeText(size)}` : sizeText(done),
    rate && node ? `${sizeText(rate)}/s` : "",
    rate && node && size ? `${durationText((size - done) / rate)} left` : "",
    phase === "downloading" && connections ? pluralText(connections, "connection") : phase,
    job.attempts > 1 ? `attempt ${countText(job.attempts)}` : "",
    job.node ?? node?.node ?? "",
    job.flag ? `${job.flag} requested` : "",
  ]));
  setText(row.querySelector(".warning"), !node ? "its node is lost; another node will take it over" : isStill ? `no data for ${durationText(still)}` : "");
}

export function updateListed(row, job) {
  const times = { queued: ["since", job.created_at], delayed: ["", null] };
  const [word, moment] = times[job.state] ?? ["", job.ended_at];
  const due = job.state === "delayed" && job.due_at ? Date.parse(job.due_at) / 1000 - now() : null;
  setText(row.querySelector(".meta"), joined([
    job.state === "succeeded" && Number.isFinite(job.note?.size) ? sizeText(job.note.size) : "",
    job.state === "succeeded" && job.note?.seconds ? `in ${durationText(job.note.seconds)}` : "",
    moment ? agoText(moment) : word && "in the intake list",
    due === null ? "" : due > 0 ? `in ${durationText(due)}` : "due",
    job.priority === "normal" ? "" : `${job.priority} priority`,
    job.state === "delayed" || job.problem ? reasonOf(job) : "",
  ]));
}
