// Draws failed jobs. Jobs of one origin that failed for the same reason share a row, which can be opened.

import { runBatch } from "./actions.js";
import { button, el, setText, confirmButton } from "./dom.js";
import { attemptsText, jobKey, jobRow, joined, reasonOf } from "./jobs.js";
import { reconcile } from "./lists.js";
import { agoText, countText } from "./texts.js";

const ALIKE = 3; // a group with more jobs is one row

/** Return jobs and groups {label, host, jobs}, a group in the place of its first job. `canGroup`: the server has /jobs/batch. */
export function grouped(jobs, canGroup) {
  const groups = new Map();
  for (const job of jobs) {
    const [label, host] = [job.note?.label ?? job.state, hostOf(job.url)];
    const key = `group ${label} ${host}`;
    if (!groups.has(key)) groups.set(key, { key, label, host, jobs: [] });
    groups.get(key).jobs.push(job);
  }
  return [...groups.values()].flatMap((group) => (canGroup && group.jobs.length > ALIKE ? [group] : group.jobs.map((job) => ({ key: jobKey(job), job }))));
}

function hostOf(url) {
  try {
    return new URL(url).host;
  } catch {
    return "";
  }
}

/** Create the row of a job or of a group. `canDismiss`: the server can remove jobs. */
export const failureRow = (item, canDismiss) => (item.jobs ? groupRow(item) : failedRow(item.job, canDismiss));

export function updateFailure(row, item, canDismiss) {
  if (!item.jobs) return void updateFailed(row, item.job);
  row.group = item;
  setText(row.querySelector(".name"), groupText(item));
  setText(row.querySelector(".reason"), reasonOf(item.jobs[0]));
  setText(row.querySelector(".meta"), `the last one failed ${agoText(item.jobs[0].ended_at)}`);
  reconcile(row.querySelector("ul"), item.jobs, jobKey, (job) => failedRow(job, canDismiss), updateFailed);
}

const groupText = ({ jobs, label, host }) => `${countText(jobs.length)} × ${label}${host && ` at ${host}`}`;

function failedRow(job, canDismiss) {
  const row = jobRow(job, canDismiss);
  row.insertBefore(el("p", { class: "reason" }), row.querySelector(".meta"));
  return row;
}

function updateFailed(row, job) {
  setText(row.querySelector(".reason"), reasonOf(job) || job.state);
  setText(row.querySelector(".meta"), joined([job.ended_at ? agoText(job.ended_at) : "", attemptsText(job), job.note?.label ?? ""]));
}

function groupRow(group) {
  const row = el("li", { class: "row group" });
  const all = (text, verb) => () => runBatch(`${text}: ${groupText(row.group)}`, verb, row.group.jobs.map((job) => job.id), row);
  const label = `${group.label}${group.host && ` at ${group.host}`}`;
  row.append(
    el("div", { class: "title" }, el("strong", { class: "name" }), el("div", { class: "buttons" },
      button("Retry all", `Retry all: ${label}`, all("Retry all", "retry")), confirmButton("Dismiss all", `Dismiss all: ${label}`, all("Dismiss all", "remove")))),
    el("p", { class: "reason" }), el("p", { class: "meta" }),
    el("details", {}, el("summary", { text: "Show jobs" }), el("ul", { class: "inner" })),
  );
  return row;
}
