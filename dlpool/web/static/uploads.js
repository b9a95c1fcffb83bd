// The list of uploads: files are dropped or chosen, and go on by themselves after a reload. Several tabs share it by
// the notes of notes.js: each upload is one tab's at a time, and what is done in another tab holds here, too.

import { session, who } from "./api.js";
import { byId, say } from "./dom.js";
import { droppedFiles, TooMany } from "./drops.js";
import { forget, forgetAll, forgetFile, idOf, identityOf, isSame, keepFile, keepNote, keptFile, newNote, noteOf, notes } from "./notes.js";
import { Stopped } from "./lanes.js";
import { fill } from "./lists.js";
import { advice, files as places } from "./sending.js";
import { countText, pluralText, sizeText } from "./texts.js";
import { Upload } from "./upload.js";
import { makeRow, updateRow } from "./uploadrow.js";

const BUSY = ["queued", "uploading", "waiting", "merging", "elsewhere", "pausing"];
const DONE_KEPT = 20;
const TAKEN_AT_ONCE = 8;
const SHOWN = 100; // rows; there may be thousands of files
const RANKS = { queued: 1, completed: 2 };
const SETTLE_MS = 500; // another tab takes a file: its lock comes after its note

const base = document.body.dataset.uploads;
const uploads = new Map();
const runs = new Map(); // promises, by id
let isDrawing = false;
let settling = 0;
let untaken = 0; // files that were given, and not looked at yet

// --- running ---------------------------------------------------------------------------------------------------------

function changed(upload) {
  const { note, state } = upload;
  if (note.chunk && !upload.isSized) {
    upload.isSized = true; // after a reload its chunks must be the same ones
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
function begin(upload, options) {
  const before = runs.get(upload.note.id);
  upload.ready();
  runs.set(upload.note.id, alone(upload, before, options));
}

async function alone(upload, before, options) {
  const { signal } = upload;
  await before;
  const run = () => inTurn(upload, signal, options);
  if (!navigator.locks) return run();
  const isOurs = await navigator.locks.request(lockOf(upload), { ifAvailable: true }, async (lock) => {
    if (lock) await run();
    return lock !== null;
  });
  if (isOurs || signal.aborted) return undefined;
  upload.set("elsewhere");
  return navigator.locks.request(lockOf(upload), { signal }, run).catch((error) => {
    if (error.name !== "AbortError") throw error; // it was stopped meanwhile
  });
}

const lockOf = (upload) => `dlpool.upload.${upload.note.id}`;

/** The lock is ours: go by what another tab has made of it, and then wait for a place. */
async function inTurn(upload, signal, options) {
  try {
    await places.run(signal, async () => {
      const note = upload.isKept ? noteOf(upload.note.id) : upload.note;
      if (!agree(upload, note)) return;
      upload.file ??= await fileOf(upload);
      if (upload.file && !signal.aborted) await upload.run(options);
    });
  } catch (error) {
    if (!(error instanceof Stopped)) throw error;
  }
}

/** Take over what a note says; whether there is something left to do. */
function agree(upload, note) {
  if (!note) return void drop(upload);
  Object.assign(upload.note, note);
  if (note.isDone) {
    upload.stored = note.size;
    upload.stop("completed");
  } else if (note.isPaused) upload.stop();
  return !note.isDone && !note.isPaused;
}

/** The file that a page before this one has kept; without one the upload says what is missing. */
async function fileOf(upload, options) {
  const file = await keptFile(upload.note, options);
  upload.mayAsk = file === "ask";
  if (upload.mayAsk) upload.set("paused", "the browser wants you to allow it");
  else if (!file) upload.set("lost");
  if (!file) upload.look();
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

/** What a page before this one left, and mine. */
async function goOn() {
  for (const upload of uploads.values()) if (upload.note.who !== who()) drop(upload);
  for (const note of notes().filter((one) => !uploads.has(one.id))) {
    const upload = add(note, null);
    if (!note.isDone && !note.isPaused) begin(upload);
    else if (agree(upload, note) === false && note.isPaused && !note.isDone) fileOf(upload).then((file) => {
      upload.file ??= file;
      if (file) upload.look();
    });
  }
  drawUploads();
}

/** Another tab has changed a note. */
function heard(id) {
  const [upload, note] = [uploads.get(id), noteOf(id)];
  if (!upload) {
    clearTimeout(settling);
    settling = setTimeout(goOn, SETTLE_MS);
    return;
  }
  const wasPaused = upload.state === "paused";
  if (agree(upload, note) && wasPaused) begin(upload);
}

// --- what a person does ----------------------------------------------------------------------------------------------

/** Take a file: a new upload, or the rest of one that is known. Answers why it is not taken, or "". */
async function take({ file, folder, handle }) {
  const limits = await advice(base).catch(() => null); // a server that is away says it later
  if (limits && file.size > limits.max_file_size) return `${file.name} is larger than ${sizeText(limits.max_file_size)}, the most that this server takes`;
  let identity;
  try {
    identity = await identityOf(file, folder);
  } catch (error) {
    return `${file.name} cannot be read: ${error.message}`;
  }
  const known = [...uploads.values()].find((one) => one.state !== "completed" && isSame(one.note, identity));
  if (known && BUSY.includes(known.state)) return `${file.name} is on its way already`;
  known?.stop();
  const note = { ...(known?.note ?? newNote(identity)), isPaused: false };
  begin(add(note, file, keepNote(note)));
  changed(uploads.get(note.id));
  await keepFile(note.id, file, handle);
  return "";
}

async function takeAll(reading) {
  refuse([]);
  const refused = [];
  try {
    const given = await reading;
    untaken += given.length;
    const rest = given.values();
    const lane = async () => {
      for (const one of rest) {
        const why = await take(one).finally(() => (untaken -= 1));
        if (why) refuse(refused.push(why) && refused);
      }
    };
    await Promise.all(Array.from({ length: TAKEN_AT_ONCE }, lane));
  } catch (error) {
    refuse([error instanceof TooMany ? error.message : `A folder cannot be read: ${error.message}`]);
  }
}

function refuse(why) {
  const text = why.slice(0, 3).join("; ") + (why.length > 3 ? `; and ${countText(why.length - 3)} more` : "");
  say(byId("uploads-refused"), why.length > 1 ? `${pluralText(why.length, "file")} not taken: ${text}` : text);
}

async function resume(upload) {
  if (upload.mayAsk) {
    upload.file = await fileOf(upload, { mayAsk: true });
    if (!upload.file) return;
  }
  upload.note.isPaused = false;
  upload.isKept = keepNote(upload.note);
  begin(upload, { isAsked: true });
}

function pause(upload) {
  upload.note.isPaused = true;
  upload.isKept = keepNote(upload.note);
  upload.pause();
}

/** The name is another file's: put it together under the next one, NAME-1 before the ending. */
function saveAs(upload) {
  upload.note.as = upload.nextName;
  resume(upload);
}

async function remove(upload) {
  const { note, state } = upload;
  upload.stop("paused", "it is being removed");
  const kept = noteOf(note.id);
  forget(note.id); // whichever tab has it stops now
  try {
    const gone = () => upload.remove();
    if (state !== "completed") await (navigator.locks ? navigator.locks.request(lockOf(upload), gone) : gone());
    drop(upload);
  } catch (error) {
    if (kept) keepNote({ ...note, isPaused: true });
    upload.set("paused", `it could not be removed: ${error.message}`);
  }
}

/** Forget all uploads of this browser; what the server has of them stays there. */
export async function forgetUploads() {
  for (const upload of [...uploads.values()]) drop(upload);
  await forgetAll();
}

/** What signing out would cost. */
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
  const left = untaken + all.filter((one) => !["completed", "failed"].includes(one.state)).length;
  say(byId("uploads-count"), left ? `${countText(left)} to go` : "");
}

/** Let files be dropped anywhere on the page, and go on with those of before. */
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
    if (byId("main").hidden) say(byId("login-said"), "Sign in first, then drop the files.");
    else takeAll(droppedFiles(event.dataTransfer));
  });
  byId("files").addEventListener("change", (event) => {
    takeAll([...event.target.files].map((file) => ({ file, folder: "", handle: null })));
    event.target.value = "";
  });
  window.addEventListener("storage", ({ key }) => {
    for (const id of key === null ? [...uploads.keys()] : [idOf(key)]) if (id) heard(id);
  });
  session.addEventListener("change", goOn);
  goOn();
}
