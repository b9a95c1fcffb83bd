// Bytes a second of what only counts up.

const OVER_S = 6;
const LEAST_S = 2;

export class Rates {
  #known = new Map();
  #noted = new Set();

  /** Note a count of bytes at a time in seconds: {rate: bytes a second, null if not known yet; still: seconds without a byte}. */
  note(name, bytes, at) {
    if (!Number.isFinite(bytes)) return { rate: null, still: 0 };
    this.#noted.add(name);
    let one = this.#known.get(name);
    if (!one || bytes < one.bytes) one = { bytes, isFirst: true, changed: at, marks: [[at, bytes]] };
    this.#known.set(name, one);
    if (bytes !== one.bytes) {
      // What was seen first may have been old already: a rate from there would be too high.
      if (one.isFirst) Object.assign(one, { isFirst: false, marks: [] });
      Object.assign(one, { bytes, changed: at });
    }
    if (one.marks.at(-1)?.[0] !== at) one.marks.push([at, bytes]);
    while (one.marks.length > 2 && one.marks[1][0] < at - OVER_S) one.marks.shift();
    const [start, first] = one.marks[0];
    const still = at - one.changed;
    if (one.isFirst) return { rate: still > OVER_S ? 0 : null, still };
    return { rate: at - start >= LEAST_S ? (bytes - first) / (at - start) : null, still };
  }

  /** Forget what was not noted since the last call. */
  sweep() {
    for (const name of this.#known.keys()) if (!this.#noted.has(name)) this.#known.delete(name);
    this.#noted.clear();
  }
}
