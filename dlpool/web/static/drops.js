// Reads dropped files and folders into a list [{file, folder, handle}] of at most MOST files.

const MOST = 10_000;

export class TooMany extends Error {}

/** Return a promise of the dropped files. Call it before the event handler returns. Rejects with TooMany. */
export function droppedFiles(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file").map((item) => {
    const entry = item.webkitGetAsEntry?.() ?? null;
    const handle = entry?.isDirectory ? null : item.getAsFileSystemHandle?.().catch(() => null);
    return { entry, file: item.getAsFile(), handle };
  });
  return readAll(items);
}

async function readAll(items) {
  const found = [];
  for (const { entry, file, handle } of items) {
    if (entry?.isDirectory) await walk(entry, found);
    else if (file) found.push({ file, folder: "", handle: (await handle) ?? null });
    check(found.length);
  }
  return found;
}

/** Add all files below a folder, in the order of their names. */
async function walk(folder, found) {
  const reader = folder.createReader();
  const entries = [];
  for (let some = null; some === null || some.length; entries.push(...some)) {
    some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // returns at most a hundred entries a call
    check(found.length + entries.length);
  }
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.isDirectory) await walk(entry, found);
    else {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ file, folder: folder.fullPath.replace(/^\//, ""), handle: null });
    }
    check(found.length);
  }
}

function check(count) {
  if (count > MOST) throw new TooMany(`More than ${MOST.toLocaleString("en")} files were dropped, and none is uploaded: drop fewer at once.`);
}
