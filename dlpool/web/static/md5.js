// MD5 (RFC 1321) of what comes in pieces: the browser's own crypto has none, and the upload API wants one a chunk.

const SHIFTS = [7, 12, 17, 22, 5, 9, 14, 20, 4, 11, 16, 23, 6, 10, 15, 21];
const SINES = Int32Array.from({ length: 64 }, (_, i) => Math.floor(Math.abs(Math.sin(i + 1)) * 2 ** 32));

export class Md5 {
  #state = Int32Array.of(0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476);
  #words = new Int32Array(16);
  #rest = new Uint8Array(64);
  #restSize = 0;
  #size = 0;

  /** Add bytes (a Uint8Array). */
  update(data) {
    this.#size += data.length;
    let start = 0;
    if (this.#restSize > 0) {
      start = Math.min(64 - this.#restSize, data.length);
      this.#rest.set(data.subarray(0, start), this.#restSize);
      this.#restSize += start;
      if (this.#restSize < 64) return this;
      this.#block(new DataView(this.#rest.buffer), 0);
      this.#restSize = 0;
    }
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    for (; start + 64 <= data.length; start += 64) this.#block(view, start);
    this.#rest.set(data.subarray(start));
    this.#restSize = data.length - start;
    return this;
  }

  /** Another one that has read the same. */
  copy() {
    const other = new Md5();
    other.#state.set(this.#state);
    other.#rest.set(this.#rest);
    other.#restSize = this.#restSize;
    other.#size = this.#size;
    return other;
  }

  /** The digest in hexadecimal; nothing can be added afterwards. */
  hex() {
    const bits = new DataView(new ArrayBuffer(8));
    bits.setUint32(0, (this.#size * 8) % 2 ** 32, true);
    bits.setUint32(4, Math.floor((this.#size * 8) / 2 ** 32), true);
    const padding = new Uint8Array(this.#restSize < 56 ? 56 - this.#restSize : 120 - this.#restSize);
    padding[0] = 0x80;
    this.update(padding).update(new Uint8Array(bits.buffer));
    const digest = new DataView(new ArrayBuffer(16));
    this.#state.forEach((word, i) => digest.setInt32(4 * i, word, true));
    return Array.from(new Uint8Array(digest.buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  #block(view, start) {
    const words = this.#words;
    for (let i = 0; i < 16; i++) words[i] = view.getInt32(start + 4 * i, true);
    let [a, b, c, d] = this.#state;
    for (let i = 0; i < 64; i++) {
      const round = i >> 4;
      let mixed, index;
      if (round === 0) { mixed = (b & c) | (~b & d); index = i; }
      else if (round === 1) { mixed = (d & b) | (~d & c); index = (5 * i + 1) & 15; }
      else if (round === 2) { mixed = b ^ c ^ d; index = (3 * i + 5) & 15; }
      else { mixed = c ^ (b | ~d); index = (7 * i) & 15; }
      const sum = (a + mixed + SINES[i] + words[index]) | 0;
      const shift = SHIFTS[4 * round + (i & 3)];
      a = d;
      d = c;
      c = b;
      b = (b + ((sum << shift) | (sum >>> (32 - shift)))) | 0;
    }
    const state = this.#state;
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
  }
}
