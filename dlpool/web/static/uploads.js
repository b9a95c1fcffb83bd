// The list of uploads: files are dropped or chosen, and go on by themselves after a reload.

import { bar, byId, durationText, el, reconcile, say, setBar, show, sizeText, sureButton } from "./dom.js";
import { forget, keepFile, keepNote, keptFile, newNote, noteOf, notes } from "./files.js";
import { Upload } from "./upload.js";

const WORDS = {
  uploading: "", waiting: "waiting", paused: "paused", merging: "putting it together", completed: "done",
  failed: "failed", lost: "drop the file again to go on",
};
const RATE_MS = 5000;

const base = document.body.dataset.uploads;
const uploads = new Map();
const runs = new Map(); // promises, by id
let isDrawing = false;

function changed(upload) {
  const { note, state } = upload;
  if (state === "completed" && !note.isDone && uploads.has(note.id)) {
    Object.assign(note, { isDone: true, path: upload.path });
    forget(note.id).then(() => keepNote(note));
    say(byId("uploads-said"), `${note.name} is uploaded`);
  }
  if (state === "failed") say(byId("uploads-said"), `${note.name} failed: ${upload.said}`);
  if (isDrawing) return;
  isDrawing = true;
  setTimeout(() => {
    isDrawing = false;
    drawUploads();
  }, 100);
}

/** Run it once what ran it before has stopped; another tab of the same page may have it, and is waited for. */
async function begin(upload) {
  const { id } = upload.note;
  const before = runs.get(id);
  Object.assign(upload, { state: "waiting", said: "" });
  changed(upload);
  const run = () => (upload.state === "waiting" ? upload.run() : undefined);
  const alone = async () => {
    await before;
    const name = `dlpool.upload.${id}`;
    if (!navigator.locks) return run();
    const isOurs = await navigator.locks.request(name, { ifAvailable: true }, async (lock) => {
      if (lock) await run();
      return lock !== null;
    });
    if (isOurs || upload.state !== "waiting") return undefined;
    upload.said = "another tab uploads it";
    changed(upload);
    return navigator.locks.request(name, run);
  };
  runs.set(id, alone());
}

function add(note, file, { isPaused = false } = {}) {
  const upload = new Upload(base, note, file, changed);
  upload.marks = [];
  uploads.set(note.id, upload);
  if (note.isDone) {
    upload.state = "completed";
    upload.sent = note.size;
  } else if (!file) upload.state = "lost";
  else if (isPaused) upload.state = "paused";
  else begin(upload);
  if (["lost", "paused"].includes(upload.state)) upload.look();
  changed(upload);
  return upload;
}

/** Take a file: a new upload, or the rest of one that is known. */
async function take(file, handle) {
  const known = noteOf(file);
  const running = known && uploads.get(known.id);
  if (running && ["uploading", "waiting", "merging"].includes(running.state)) return;
  const note = { ...(known ?? newNote(file)), isPaused: false };
  running?.stop();
  keepNote(note);
  add(note, file);
  await keepFile(note.id, file, handle);
}

/** What a page before this one left. */
async function goOn() {
  for (const note of notes()) {
    const file = note.isDone ? null : await keptFile(note);
    const upload = add(note, file === "ask" ? null : file, note);
    upload.mayAsk = file === "ask";
    if (upload.mayAsk) changed(Object.assign(upload, { state: "paused", said: "the browser wants you to allow it" }));
  }
}

async function resume(upload) {
  if (upload.mayAsk) {
    const file = await keptFile(upload.note, { mayAsk: true });
    if (file === "ask") return;
    upload.mayAsk = false;
    upload.file = file;
    if (!file) return void changed(Object.assign(upload, { state: "lost", said: "" }));
  }
  upload.note.isPaused = false;
  keepNote(upload.note);
  begin(upload);
}

function pause(upload) {
  upload.note.isPaused = true;
  keepNote(upload.note);
  upload.stop();
}

async function remove(upload) {
  const isDone = upload.state === "completed";
  try {
    if (!isDone) await upload.remove();
  } catch (error) {
    return void changed(Object.assign(upload, { state: "failed", said: error.message }));
  }
  uploads.delete(upload.note.id);
  await forget(upload.note.id);
  drawUploads();
}

function makeRow(upload) {
  const name = upload.note.name;
  const row = el("li", { class: "row upload" });
  const pauseButton = el("button", { type: "button", class: "quiet", on: { click: () => pause(upload) } , text: "Pause", "aria-label": `Pause ${name}` });
  const resumeButton = el("button", { type: "button", class: "quiet", on: { click: () => resume(upload) }, text: "Resume", "aria-label": `Resume ${name}` });
  const buttons = el("div", { class: "buttons" }, pauseButton, resumeButton, sureButton("Remove", `Remove ${name}`, () => remove(row.upload)));
  row.append(el("div", { class: "title" }, el("strong", { text: name, title: name }), buttons), bar(`Upload of ${name}`), el("p", { class: "meta" }));
  row.pauseButton = pauseButton;
  row.resumeButton = resumeButton;
  return row;
}

function updateRow(row, upload) {
  row.upload = upload;
  row.dataset.state = upload.state;
  show(row.pauseButton, ["uploading", "waiting"].includes(upload.state));
  show(row.resumeButton, ["paused", "failed"].includes(upload.state) && (Boolean(upload.file) || upload.mayAsk === true));
  const { size } = upload.note;
  setBar(row.querySelector(".bar"), upload.state === "merging" ? null : size ? Math.min(1, upload.sent / size) : Number(upload.state === "completed"));
  const parts = [upload.state === "completed" ? sizeText(size) : `${sizeText(upload.sent)} of ${sizeText(size)}`, rateText(upload), WORDS[upload.state]];
  if (upload.state === "completed" && upload.path) parts.push(upload.path);
  say(row.querySelector(".meta"), [...parts, upload.said].filter(Boolean).join(" · "));
}

function rateText(upload) {
  const now = performance.now();
  if (upload.state !== "uploading") {
    upload.marks = [];
    return "";
  }
  upload.marks.push([now, upload.sent]);
  while (upload.marks.length > 2 && upload.marks[0][0] < now - RATE_MS) upload.marks.shift();
  const [at, sent] = upload.marks[0];
  const rate = now - at > 500 ? ((upload.sent - sent) * 1000) / (now - at) : 0;
  if (rate <= 0) return "";
  return `${sizeText(rate)}/s · ${durationText((upload.note.size - upload.sent) / rate)} left`;
}

function drawUploads() {
  reconcile(byId("uploads"), [...uploads.values()].reverse(), (one) => one.note.id, makeRow, updateRow);
}

/** What was dropped: files, each with a handle where the browser gives one. It must be read before the event ends. */
function droppedFiles(transfer) {
  return [...transfer.items].filter((item) => item.kind === "file").map((item) => {
    const entry = item.webkitGetAsEntry?.();
    const handle = item.getAsFileSystemHandle?.().catch(() => null) ?? Promise.resolve(null);
    return { file: item.getAsFile(), handle, isFolder: entry?.isDirectory ?? false };
  });
}

/** Let files be dropped anywhere on the page, and go on with those of before. */
export async function startUploads() {
  const zone = byId("drop");
  const isOfFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!isOfFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? zone.classList.remove("over"));
  document.addEventListener("drop", async (event) => {
    if (!isOfFiles(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    for (const { file, handle, isFolder } of droppedFiles(event.dataTransfer)) {
      if (isFolder) say(byId("uploads-said"), "A folder cannot be uploaded: drop its files.");
      else if (file) await take(file, await handle);
    }
  });
  byId("files").addEventListener("change", async (event) => {
    for (const file of [...event.target.files]) await take(file, null);
    event.target.value = "";
  });
  await goOn();
}
