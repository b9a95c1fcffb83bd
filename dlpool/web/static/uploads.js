// Manages the list of uploads. Uploads resume after a reload. Several tabs share the list through the notes of notes.js:
// one tab at a time runs an upload, and each tab follows the changes of the others.

import { session, currentUser } from "./api.js";
import { byId, setText } from "./dom.js";
import { droppedFiles, TooMany } from "./drops.js";
import { forget, removeAll, forgetFile, idOf, identityOf, isSame, keepFile, keepNote, keptFile, newNote, noteOf, notes } from "./notes.js";
import { Stopped } from "./tasklimit.js";
import { fill } from "./lists.js";
import { clientSettings, files as slots } from "./sending.js";
import { countText, pluralText, sizeText } from "./texts.js";
import { Upload } from "./upload.js";
import { makeRow, updateRow } from "./uploadrow.js";

const BUSY = ["queued", "uploading", "waiting", "merging", "elsewhere", "pausing"];
const DONE_KEPT = 20;
const PARALLEL_FILES = 8;
const SHOWN = 100; // rows
const RANKS = { queued: 1, completed: 2 };
const SETTLE_MS = 500; // after a note of another tab, until that tab has locked the upload

const base = document.body.dataset.uploads;
const uploads = new Map();
const runs = new Map(); // promises, by id
let isDrawing = false;
let settling = 0;
let pending = 0; // dropped files that are not processed yet

// --- running ---------------------------------------------------------------------------------------------------------

function changed(upload) {
  const { note, state } = upload;
  if (note.chunk && !upload.isSized) {
    upload.isSized = true; // the chunk size must not change after a reload
    keepNote(note);
  }
  if (state === "completed" && !note.isDone && uploads.has(note.id)) {
    note.isDone = true;
    keepNote(note);
    forgetFile(note.id);
    const done = [...uploads.values()].filter((one) => one.note.isDone);
    for (const old of done.slice(0, Math.max(0, done.length - DONE_KEPT))) {
      uploads.delete(old.note.id);
      forget(old.note.id);
    }
    setText(byId("uploads-said"), `${note.name} is uploaded`);
  }
  if (state === "failed") setText(byId("uploads-said"), `${note.name} failed: ${upload.said}`);
  if (isDrawing) return;
  isDrawing = true;
  setTimeout(() => {
    isDrawing = false;
    drawUploads();
  }, 100);
}

/** Run an upload after its previous run has stopped and no other tab runs it. */
function start(upload, options) {
  const before = runs.get(upload.note.id);
  upload.ready();
  runs.set(upload.note.id, runLocked(upload, before, options));
}

async function runLocked(upload, before, options) {
  const { signal } = upload;
  await before;
  const run = () => runWhenFree(upload, signal, options);
  if (!navigator.locks) return run();
  const isOurs = await navigator.locks.request(lockOf(upload), { ifAvailable: true }, async (lock) => {
    if (lock) await run();
    return lock !== null;
  });
  if (isOurs || signal.aborted) return undefined;
  upload.set("elsewhere");
  return navigator.locks.request(lockOf(upload), { signal }, run).catch((error) => {
    if (error.name !== "AbortError") throw error; // the upload was stopped
  });
}

const lockOf = (upload) => `dlpool.upload.${upload.note.id}`;

/** Run a locked upload when a slot is free, in the state that the other tabs left. */
async function runWhenFree(upload, signal, options) {
  try {
    await slots.run(signal, async () => {
      const note = upload.isKept ? noteOf(upload.note.id) : upload.note;
      if (!applyNote(upload, note)) return;
      upload.file ??= await fileOf(upload);
      if (upload.file && !signal.aborted) await upload.run(options);
    });
  } catch (error) {
    if (!(error instanceof Stopped)) throw error;
  }
}

/** Apply a note to an upload; return whether the upload must run. */
function applyNote(upload, note) {
  if (!note) return void drop(upload);
  Object.assign(upload.note, note);
  if (note.isDone) {
    upload.stored = note.size;
    upload.stop("completed");
  } else if (note.isPaused) upload.stop();
  return !note.isDone && !note.isPaused;
}

/** Return the stored file of an upload; without one set the state that tells what is missing. */
async function fileOf(upload, options) {
  const file = await keptFile(upload.note, options);
  upload.mayAsk = file === "ask";
  if (upload.mayAsk) upload.set("paused", "press Resume and allow the browser to read the file");
  else if (!file) upload.set("lost");
  if (!file) upload.loadStored();
  return upload.mayAsk ? null : file;
}

function add(note, file, isKept = true) {
  const upload = Object.assign(new Upload(base, note, file, changed), { isKept, mayAsk: false, isSized: Boolean(note.chunk) });
  uploads.set(note.id, upload);
  return upload;
}

function drop(upload) {
  upload.stop();
  uploads.delete(upload.note.id);
  drawUploads();
}

/** Load the stored uploads of the current user, and drop those of other users. */
async function resumeStored() {
  for (const upload of uploads.values()) if (upload.note.who !== currentUser()) drop(upload);
  for (const note of notes().filter((one) => !uploads.has(one.id))) {
    const upload = add(note, null);
    if (!note.isDone && !note.isPaused) start(upload);
    else if (applyNote(upload, note) === false && note.isPaused && !note.isDone) fileOf(upload).then((file) => {
      upload.file ??= file;
      if (file) upload.loadStored();
    });
  }
  drawUploads();
}

/** Follow a note that another tab changed. */
function followNote(id) {
  const [upload, note] = [uploads.get(id), noteOf(id)];
  if (!upload) {
    clearTimeout(settling);
    settling = setTimeout(resumeStored, SETTLE_MS);
    return;
  }
  const wasPaused = upload.state === "paused";
  if (applyNote(upload, note) && wasPaused) start(upload);
}

// --- actions of the user ---------------------------------------------------------------------------------------------

/** Start an upload of a file, or resume a known one. Return why the file is rejected, or "". */
async function accept({ file, folder, handle }) {
  const limits = await clientSettings(base).catch(() => null); // an unavailable server reports its limit later
  if (limits && file.size > limits.max_file_size) return `${file.name} is larger than ${sizeText(limits.max_file_size)}, the limit of this server`;
  let identity;
  try {
    identity = await identityOf(file, folder);
  } catch (error) {
    return `${file.name} cannot be read: ${error.message}`;
  }
  const known = [...uploads.values()].find((one) => one.state !== "completed" && isSame(one.note, identity));
  if (known && BUSY.includes(known.state)) return `${file.name} is already being uploaded`;
  known?.stop();
  const note = { ...(known?.note ?? newNote(identity)), isPaused: false };
  start(add(note, file, keepNote(note)));
  changed(uploads.get(note.id));
  await keepFile(note.id, file, handle);
  return "";
}

async function acceptAll(reading) {
  showRejected([]);
  const rejected = [];
  try {
    const given = await reading;
    pending += given.length;
    const rest = given.values();
    const worker = async () => {
      for (const one of rest) {
        const why = await accept(one).finally(() => (pending -= 1));
        if (why) showRejected(rejected.push(why) && rejected);
      }
    };
    await Promise.all(Array.from({ length: PARALLEL_FILES }, worker));
  } catch (error) {
    showRejected([error instanceof TooMany ? error.message : `A folder cannot be read: ${error.message}`]);
  }
}

function showRejected(why) {
  const text = why.slice(0, 3).join("; ") + (why.length > 3 ? `; and ${countText(why.length - 3)} more` : "");
  setText(byId("uploads-refused"), why.length > 1 ? `${pluralText(why.length, "file")} rejected: ${text}` : text);
}

async function resume(upload) {
  if (upload.mayAsk) {
    upload.file = await fileOf(upload, { mayAsk: true });
    if (!upload.file) return;
  }
  upload.note.isPaused = false;
  upload.isKept = keepNote(upload.note);
  start(upload, { isAsked: true });
}

function pause(upload) {
  upload.note.isPaused = true;
  upload.isKept = keepNote(upload.note);
  upload.pause();
}

/** Merge under the next free name, because another file has this name. */
function saveAs(upload) {
  upload.note.as = upload.nextName;
  resume(upload);
}

async function remove(upload) {
  const { note, state } = upload;
  upload.stop("paused", "removing");
  const kept = noteOf(note.id);
  forget(note.id); // the tab that runs it stops
  try {
    const gone = () => upload.remove();
    if (state !== "completed") await (navigator.locks ? navigator.locks.request(lockOf(upload), gone) : gone());
    drop(upload);
  } catch (error) {
    if (kept) keepNote({ ...note, isPaused: true });
    upload.set("paused", `cannot be removed: ${error.message}`);
  }
}

/** Remove all uploads from this browser; stored chunks stay on the server. */
export async function forgetUploads() {
  for (const upload of [...uploads.values()]) drop(upload);
  await removeAll();
}

/** Return the question of the sign-out button. */
export function unfinishedText() {
  const count = [...uploads.values()].filter((one) => one.state !== "completed").length;
  return count ? `Forget ${pluralText(count, "upload")}?` : "Sure?";
}

// --- drawing ---------------------------------------------------------------------------------------------------------

const actions = { pause, resume, remove, saveAs };

function drawUploads() {
  const rank = (one) => RANKS[one.state] ?? 0;
  const all = [...uploads.values()].sort((a, b) => rank(a) - rank(b) || (rank(a) === 2 ? b.note.at - a.note.at : 0));
  fill("uploads", { items: all.slice(0, SHOWN), key: (one) => one.note.id, make: (one) => makeRow(one, base, actions), update: updateRow });
  const left = pending + all.filter((one) => !["completed", "failed"].includes(one.state)).length;
  setText(byId("uploads-count"), left ? `${countText(left)} left` : "");
}

/** Accept dropped and chosen files, and resume stored uploads. */
export function startUploads() {
  const zone = byId("drop");
  const isOfFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!isOfFiles(event)) return;
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? zone.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    if (!isOfFiles(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    if (byId("main").hidden) setText(byId("login-said"), "Sign in first, then drop the files.");
    else acceptAll(droppedFiles(event.dataTransfer));
  });
  byId("files").addEventListener("change", (event) => {
    acceptAll([...event.target.files].map((file) => ({ file, folder: "", handle: null })));
    event.target.value = "";
  });
  window.addEventListener("storage", ({ key }) => {
    for (const id of key === null ? [...uploads.keys()] : [idOf(key)]) if (id) followNote(id);
  });
  session.addEventListener("change", resumeStored);
  resumeStored();
}
