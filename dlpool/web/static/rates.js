// Computes bytes per second from counters.

const OVER_S = 6;
const LEAST_S = 2;

export class Rates {
  #known = new Map();
  #recorded = new Set();

  /** Record a counter at `at` seconds; return {rate: bytes per second, null if unknown; still: seconds without change}. */
  record(name, bytes, at) {
    if (!Number.isFinite(bytes)) return { rate: null, still: 0 };
    this.#recorded.add(name);
    let one = this.#known.get(name);
    if (!one || bytes < one.bytes) one = { bytes, isFirst: true, changed: at, marks: [[at, bytes]] };
    this.#known.set(name, one);
    if (bytes !== one.bytes) {
      // The first value may have been outdated when it was recorded; a rate from it would be too high.
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

  /** Remove counters that were not recorded since the last call. */
  sweep() {
    for (const name of this.#known.keys()) if (!this.#recorded.has(name)) this.#known.delete(name);
    this.#recorded.clear();
  }
}
