// The md5 of a file's chunks, and of the whole file along with them: its bytes are read once.

import { Md5 } from "./md5.js";

const PIECE = 2 ** 20; // between two of them the page may do something else
const ENDS = 64 * 1024;

export class FileHash {
  #file;
  #chunk;
  #whole = new Md5();
  #next = 0; // the chunk that the whole file's hash waits for; NaN if one was left out
  #turn = Promise.resolve();

  constructor(file, chunk) {
    this.#file = file;
    this.#chunk = chunk;
  }

  /** The md5 of a chunk. Chunks that are asked for in order make the whole file's, too. */
  ofChunk(index) {
    const made = this.#turn.then(() => this.#read(index));
    this.#turn = made.catch(() => {});
    return made;
  }

  /** The md5 of the file of so many chunks; null if not all of them were read here. */
  ofFile(chunks) {
    return this.#next === chunks ? this.#whole.copy().hex() : null;
  }

  async #read(index) {
    const isNext = index === this.#next;
    if (index > this.#next || isNext) this.#next = NaN; // until it is read
    const own = new Md5();
    for await (const bytes of pieces(this.#file.slice(index * this.#chunk, (index + 1) * this.#chunk))) {
      own.update(bytes);
      if (isNext) this.#whole.update(bytes);
    }
    if (isNext) this.#next = index + 1;
    return own.hex();
  }
}

/** What tells a file from one of the same name, size and time: the md5 of its first and last 64 KiB. */
export async function fingerprintOf(file) {
  const hash = new Md5();
  const last = Math.max(ENDS, file.size - ENDS);
  for (const end of [file.slice(0, ENDS), file.slice(last)]) for await (const bytes of pieces(end)) hash.update(bytes);
  return hash.hex();
}

async function* pieces(blob) {
  for (let start = 0; start < blob.size; start += PIECE) yield new Uint8Array(await blob.slice(start, start + PIECE).arrayBuffer());
}
