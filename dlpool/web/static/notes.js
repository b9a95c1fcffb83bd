// What this browser remembers of uploads over a reload: notes in localStorage, their files in IndexedDB.
// The browser makes a copy of a file that it keeps. For large ones a handle is better, where it gives one; but then it
// wants a click before it reads on.

import { who } from "./api.js";
import { fingerprintOf } from "./hashing.js";

const PREFIX = "dlpool.upload.";
const STORE = "files";
const COPIED = 4 * 2 ** 30;

/** My notes: [{id, who, at, name, folder, size, mtime, print, chunk, as, isPaused, isDone, path}], oldest first. */
export function notes() {
  return idsOfNotes().map(noteOf).filter((one) => one?.who === who()).sort((a, b) => a.at - b.at);
}

/** The note of an id, null if it is gone. */
export function noteOf(id) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + id));
  } catch {
    return null;
  }
}

/** The id of the note that a storage event is about, null if it is about something else. */
export const idOf = (key) => (key?.startsWith(PREFIX) ? key.slice(PREFIX.length) : null);

const idsOfNotes = () => Object.keys(localStorage).map(idOf).filter(Boolean);

/** Keep a note; whether the browser did. */
export function keepNote(note) {
  try {
    localStorage.setItem(PREFIX + note.id, JSON.stringify(note));
    return true;
  } catch {
    return false; // no room: the upload goes on, and only a reload forgets it
  }
}

export function newNote(identity) {
  const random = crypto.getRandomValues(new Uint8Array(16));
  const id = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, who: who(), at: Date.now(), ...identity };
}

/** What makes two files the same one. Throws if the file cannot be read. */
export async function identityOf(file, folder) {
  return { name: file.name, folder, size: file.size, mtime: file.lastModified, print: await fingerprintOf(file) };
}

export const isSame = (one, other) => ["name", "folder", "size", "mtime", "print"].every((field) => one[field] === other[field]);

export function forget(id) {
  localStorage.removeItem(PREFIX + id);
  return forgetFile(id);
}

export const forgetFile = (id) => change("readwrite", (store) => store.delete(id));

/** Forget everything, of whoever used this browser. */
export async function forgetAll() {
  for (const id of idsOfNotes()) localStorage.removeItem(PREFIX + id);
  await change("readwrite", (store) => store.clear());
}

/** Keep a file (or its handle) for after a reload; if the browser has no room, it must be dropped again then. */
export async function keepFile(id, file, handle) {
  for (const value of file.size <= COPIED ? [file, handle] : [handle, file]) {
    if (value && (await change("readwrite", (store) => store.put(value, id)))) return;
  }
}

/** The file of a note: null if there is none (any more), "ask" if the browser wants a click before. */
export async function keptFile(note, { mayAsk = false } = {}) {
  const kept = await change("readonly", (store) => store.get(note.id));
  if (!kept) return null;
  try {
    let file = kept;
    if (!(kept instanceof File)) {
      const options = { mode: "read" };
      const state = mayAsk ? await kept.requestPermission(options) : await kept.queryPermission(options);
      if (state !== "granted") return "ask";
      file = await kept.getFile();
    }
    return isSame(note, { ...(await identityOf(file, note.folder)), name: note.name }) ? file : null;
  } catch {
    return null;
  }
}

/** Do one thing with the store; its result, or undefined if the browser refuses. */
function change(mode, act) {
  return new Promise((resolve) => {
    let opening;
    try {
      opening = indexedDB.open("dlpool", 1);
    } catch {
      resolve(undefined);
      return;
    }
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onerror = () => resolve(undefined);
    opening.onsuccess = () => {
      const database = opening.result;
      const end = (value) => {
        database.close();
        resolve(value);
      };
      try {
        const transaction = database.transaction(STORE, mode);
        const request = act(transaction.objectStore(STORE));
        transaction.oncomplete = () => end(mode === "readonly" ? request.result : true);
        transaction.onerror = transaction.onabort = () => end(undefined);
      } catch {
        end(undefined);
      }
    };
  });
}
