// Draws a row of the list of uploads.

import { authHeaders, hasToken } from "./api.js";
import { showError } from "./actions.js";
import { bar, button, el, pathName, setText, setBar, show, confirmButton } from "./dom.js";
import { joined } from "./jobs.js";
import { durationText, sizeText } from "./texts.js";

const WORDS = {
  queued: "queued", uploading: "", waiting: "waiting", pausing: "finishing chunks in flight", paused: "paused",
  merging: "merging", completed: "done", failed: "", lost: "drop the file again to continue", elsewhere: "uploading in another tab",
};
const MAY_PAUSE = ["queued", "uploading", "waiting", "elsewhere", "pausing"];
const RATE_MS = 5000;

/** Create the row of an upload. `actions`: the functions of its buttons. */
export function makeRow(upload, base, actions) {
  const { name, folder } = upload.note;
  const row = el("li", { class: "row upload" });
  const made = (make, text, act) => make(text, `${text} ${name}`, () => act(row.upload));
  row.pause = made(button, "Pause", actions.pause);
  row.resume = made(button, "Resume", actions.resume);
  row.saveAs = made(button, "Save as", actions.saveAs);
  row.saveAs.className = "save";
  const remove = made(confirmButton, "Remove", (one) => {
    row.dataset.acted = "";
    actions.remove(one);
  });
  row.link = el("a", { download: "", on: { click: (event) => hasToken() && fetchInstead(event) } });
  row.base = base;
  row.marks = [];
  row.append(
    el("div", { class: "title" }, pathName(folder ? `${folder}/${name}` : name), el("div", { class: "buttons" }, row.pause, row.resume, remove)),
    bar(`Upload of ${name}`), el("p", { class: "meta" }), el("p", { class: "reason" }), row.saveAs, el("p", { class: "link" }, row.link),
  );
  return row;
}

export function updateRow(row, upload) {
  const { state, said, note, stored, moving } = upload;
  row.upload = upload;
  row.dataset.state = state;
  const mayPause = MAY_PAUSE.includes(state);
  const mayResume = ["paused", "failed"].includes(state);
  const [shown, hidden] = mayPause ? [row.pause, row.resume] : [row.resume, row.pause];
  show(shown, mayPause || mayResume);
  show(hidden, false, shown);
  label(row.pause, state === "pausing" ? "Stop now" : "Pause", note.name);
  label(row.resume, state === "failed" ? "Try again" : "Resume", note.name);
  const isTaken = state === "failed" && upload.code === "file_exists";
  upload.nextName = isTaken ? nextName(note.name, note.as) : "";
  show(row.saveAs, isTaken, row.resume);
  if (isTaken) label(row.saveAs, `Save as ${upload.nextName}`);
  const part = (bytes) => (note.size ? bytes / note.size : Number(state === "completed"));
  setBar(row.querySelector(".bar"), state === "merging" ? null : part(stored), part(moving));
  const isDone = state === "completed";
  setText(row.querySelector(".meta"), joined([
    isDone ? sizeText(note.size) : `${sizeText(stored + moving)} of ${sizeText(note.size)}`, rateText(row, upload),
    state === "uploading" && !stored && !moving ? "queued" : WORDS[state], state === "failed" ? "" : said,
  ]));
  setText(row.querySelector(".reason"), state === "failed" ? said : "");
  const path = isDone ? note.path ?? "" : "";
  setText(row.link, path);
  if (path) row.link.href = `${row.base}/files/${path.split("/").map(encodeURIComponent).join("/")}`;
}

function label(one, text, name) {
  if (one.textContent === text) return;
  one.textContent = text;
  one.setAttribute("aria-label", name ? `${text} ${name}` : text);
}

/** Return the name with -1 before its ending, or with the number after that of `before`, as the server numbers names. */
export function nextName(name, before) {
  const dot = name.lastIndexOf(".") > 0 ? name.lastIndexOf(".") : name.length;
  const [stem, ending] = [name.slice(0, dot), name.slice(dot)];
  const number = before?.startsWith(`${stem}-`) ? Number.parseInt(before.slice(stem.length + 1), 10) : 0;
  return `${stem}-${(number || 0) + 1}${ending}`;
}

function rateText(row, { state, stored, moving, note }) {
  const [now, sent] = [performance.now(), stored + moving];
  if (state !== "uploading") row.marks = [];
  if (!row.marks.length || row.marks.at(-1)[0] < now) row.marks.push([now, sent]);
  while (row.marks.length > 2 && row.marks[0][0] < now - RATE_MS) row.marks.shift();
  const [at, first] = row.marks[0];
  const rate = state === "uploading" && now - at > 500 ? ((sent - first) * 1000) / (now - at) : 0;
  return rate > 0 ? `${sizeText(rate)}/s · ${durationText((note.size - sent) / rate)} left` : "";
}

/** Fetch the file with the token, which a link cannot send, and save it. */
async function fetchInstead(event) {
  event.preventDefault();
  const { href, textContent: path } = event.currentTarget;
  try {
    const answer = await fetch(href, { headers: authHeaders() });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const url = URL.createObjectURL(await answer.blob());
    el("a", { href: url, download: path.split("/").at(-1) }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    showError(`${path}: ${error.message}`);
  }
}
