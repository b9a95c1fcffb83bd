// Keeps uploads across reloads: notes (records of an upload) in localStorage, files in IndexedDB. IndexedDB copies a
// file. For large files a file handle is stored if the browser provides one; it requires a click before it can be read.

import { currentUser } from "./api.js";
import { fingerprintOf } from "./hashing.js";

const PREFIX = "dlpool.upload.";
const STORE = "files";
const COPIED = 4 * 2 ** 30;

/** Return the user's notes [{id, who, at, name, folder, size, mtime, print, chunk, as, isPaused, isDone, path}], oldest first. */
export function notes() {
  return idsOfNotes().map(noteOf).filter((one) => one?.who === currentUser()).sort((a, b) => a.at - b.at);
}

/** Return the note with an id, null if it does not exist. */
export function noteOf(id) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + id));
  } catch {
    return null;
  }
}

/** Return the id of the note with this key of localStorage, null for other keys. */
export const idOf = (key) => (key?.startsWith(PREFIX) ? key.slice(PREFIX.length) : null);

const idsOfNotes = () => Object.keys(localStorage).map(idOf).filter(Boolean);

/** Store a note; return whether the browser accepted it. */
export function keepNote(note) {
  try {
    localStorage.setItem(PREFIX + note.id, JSON.stringify(note));
    return true;
  } catch {
    return false; // the storage is full: the upload continues, but a reload loses it
  }
}

export function newNote(identity) {
  const random = crypto.getRandomValues(new Uint8Array(16));
  const id = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, who: currentUser(), at: Date.now(), ...identity };
}

/** Return the fields that identify a file. Throws if the file cannot be read. */
export async function identityOf(file, folder) {
  return { name: file.name, folder, size: file.size, mtime: file.lastModified, print: await fingerprintOf(file) };
}

export const isSame = (one, other) => ["name", "folder", "size", "mtime", "print"].every((field) => one[field] === other[field]);

export function forget(id) {
  localStorage.removeItem(PREFIX + id);
  return forgetFile(id);
}

export const forgetFile = (id) => change("readwrite", (store) => store.delete(id));

/** Remove the notes and files of all users of this browser. */
export async function removeAll() {
  for (const id of idsOfNotes()) localStorage.removeItem(PREFIX + id);
  await change("readwrite", (store) => store.clear());
}

/** Store a file or its handle for a reload. If neither can be stored, the user must drop the file again. */
export async function keepFile(id, file, handle) {
  for (const value of file.size <= COPIED ? [file, handle] : [handle, file]) {
    if (value && (await change("readwrite", (store) => store.put(value, id)))) return;
  }
}

/** Return the file of a note, null if it is missing or has changed, "ask" if the browser requires a click first. */
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

/** Run one transaction on the store; return its result, or undefined if the browser refuses. */
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
