// Computes the MD5 of each chunk and of the complete file, reading the file once.

import { Md5 } from "./md5.js";

const PIECE = 2 ** 20; // bytes hashed at a time, so that the page stays responsive
const ENDS = 64 * 1024;

export class FileHash {
  #file;
  #chunk;
  #complete = new Md5();
  #next = 0; // the next chunk of the complete file's hash; NaN after a chunk was skipped
  #turn = Promise.resolve();

  constructor(file, chunk) {
    this.#file = file;
    this.#chunk = chunk;
  }

  /** Return the MD5 of a chunk. Chunks requested in order also update the hash of the complete file. */
  ofChunk(index) {
    const made = this.#turn.then(() => this.#read(index));
    this.#turn = made.catch(() => {});
    return made;
  }

  /** Return the MD5 of the file with `chunks` chunks; null unless all of them were read in order. */
  ofFile(chunks) {
    return this.#next === chunks ? this.#complete.copy().hex() : null;
  }

  async #read(index) {
    const isNext = index === this.#next;
    if (index > this.#next || isNext) this.#next = NaN; // until the chunk has been read
    const own = new Md5();
    for await (const bytes of pieces(this.#file.slice(index * this.#chunk, (index + 1) * this.#chunk))) {
      own.update(bytes);
      if (isNext) this.#complete.update(bytes);
    }
    if (isNext) this.#next = index + 1;
    return own.hex();
  }
}

/** Return the MD5 of the first and last 64 KiB, to distinguish files with equal names, sizes and times. */
export async function fingerprintOf(file) {
  const hash = new Md5();
  const last = Math.max(ENDS, file.size - ENDS);
  for (const end of [file.slice(0, ENDS), file.slice(last)]) for await (const bytes of pieces(end)) hash.update(bytes);
  return hash.hex();
}

async function* pieces(blob) {
  for (let start = 0; start < blob.size; start += PIECE) yield new Uint8Array(await blob.slice(start, start + PIECE).arrayBuffer());
}
