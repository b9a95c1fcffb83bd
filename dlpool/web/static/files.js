// What this page remembers of uploads over a reload: their notes in localStorage, their files in IndexedDB.
// The browser makes a copy of a file that it keeps. For large ones a handle is better, where it gives one; but then it
// wants a click before it reads on.

const NOTES = "dlpool.uploads";
const STORE = "files";
const CHUNK = 4 * 2 ** 20;
const COPIED = 4 * 2 ** 30;
const DONE_KEPT = 20;

/** The notes of all uploads: [{id, name, size, mtime, chunk, isPaused, isDone, path}]. */
export function notes() {
  try {
    const found = JSON.parse(localStorage.getItem(NOTES) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

/** Keep a note, over an earlier one of the same id. */
export function keepNote(note) {
  write([...notes().filter((one) => one.id !== note.id), note]);
}

export function forget(id) {
  write(notes().filter((one) => one.id !== id));
  return change("readwrite", (store) => store.delete(id));
}

/** The note of an unfinished upload of the same file. */
export function noteOf(file) {
  return notes().find((one) => !one.isDone && one.name === file.name && one.size === file.size && one.mtime === file.lastModified);
}

export function newNote(file) {
  const random = crypto.getRandomValues(new Uint8Array(16));
  const id = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const chunk = Math.max(CHUNK, Math.ceil(file.size / 4000 / 2 ** 20) * 2 ** 20);
  return { id, name: file.name, size: file.size, mtime: file.lastModified, chunk };
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
  if (kept instanceof File) return isSame(kept, note) ? kept : null;
  try {
    const options = { mode: "read" };
    const state = mayAsk ? await kept.requestPermission(options) : await kept.queryPermission(options);
    if (state !== "granted") return "ask";
    const file = await kept.getFile();
    return isSame(file, note) ? file : null;
  } catch {
    return null;
  }
}

function isSame(file, note) {
  return file.size === note.size && file.lastModified === note.mtime;
}

function write(list) {
  const done = list.filter((one) => one.isDone).slice(-DONE_KEPT);
  try {
    localStorage.setItem(NOTES, JSON.stringify(list.filter((one) => !one.isDone || done.includes(one))));
  } catch {
    // no room: the upload goes on, and only a reload would forget it
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
