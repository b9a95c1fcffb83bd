// Computes MD5 (RFC 1321) incrementally. The upload API needs one for each chunk, and Web Crypto has no MD5.

const SINES = Int32Array.from({ length: 64 }, (_, i) => Math.floor(Math.abs(Math.sin(i + 1)) * 2 ** 32));
const IS_LITTLE = new Uint8Array(Int32Array.of(1).buffer)[0] === 1; // MD5's words are little-endian

const turned = (value, bits) => (value << bits) | (value >>> (32 - bits));

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
      this.#blocks(this.#rest);
      this.#restSize = 0;
    }
    const end = start + Math.floor((data.length - start) / 64) * 64;
    this.#blocks(data.subarray(start, end));
    this.#rest.set(data.subarray(end));
    this.#restSize = data.length - end;
    return this;
  }

  /** Return a copy in the same state. */
  copy() {
    const other = new Md5();
    other.#state.set(this.#state);
    other.#rest.set(this.#rest);
    other.#restSize = this.#restSize;
    other.#size = this.#size;
    return other;
  }

  /** Return the digest in hexadecimal. Do not call update() afterwards. */
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

  /** Process complete blocks of 64 bytes. */
  #blocks(data) {
    if (IS_LITTLE && data.byteOffset % 4 === 0) {
      const words = new Int32Array(data.buffer, data.byteOffset, data.length / 4);
      for (let at = 0; at < words.length; at += 16) this.#block(words, at);
      return;
    }
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    for (let start = 0; start < data.length; start += 64) {
      for (let i = 0; i < 16; i++) this.#words[i] = view.getInt32(start + 4 * i, true);
      this.#block(this.#words, 0);
    }
  }

  /** Process one block. Four steps are unrolled, so that no values are moved between variables. */
  #block(w, at) {
    const state = this.#state;
    let a = state[0], b = state[1], c = state[2], d = state[3];
    for (let i = 0; i < 16; i += 4) {
      a = (b + turned((a + (d ^ (b & (c ^ d))) + w[at + i] + SINES[i]) | 0, 7)) | 0;
      d = (a + turned((d + (c ^ (a & (b ^ c))) + w[at + i + 1] + SINES[i + 1]) | 0, 12)) | 0;
      c = (d + turned((c + (b ^ (d & (a ^ b))) + w[at + i + 2] + SINES[i + 2]) | 0, 17)) | 0;
      b = (c + turned((b + (a ^ (c & (d ^ a))) + w[at + i + 3] + SINES[i + 3]) | 0, 22)) | 0;
    }
    for (let i = 16; i < 32; i += 4) {
      a = (b + turned((a + (c ^ (d & (b ^ c))) + w[at + ((5 * i + 1) & 15)] + SINES[i]) | 0, 5)) | 0;
      d = (a + turned((d + (b ^ (c & (a ^ b))) + w[at + ((5 * i + 6) & 15)] + SINES[i + 1]) | 0, 9)) | 0;
      c = (d + turned((c + (a ^ (b & (d ^ a))) + w[at + ((5 * i + 11) & 15)] + SINES[i + 2]) | 0, 14)) | 0;
      b = (c + turned((b + (d ^ (a & (c ^ d))) + w[at + ((5 * i) & 15)] + SINES[i + 3]) | 0, 20)) | 0;
    }
    for (let i = 32; i < 48; i += 4) {
      a = (b + turned((a + (b ^ c ^ d) + w[at + ((3 * i + 5) & 15)] + SINES[i]) | 0, 4)) | 0;
      d = (a + turned((d + (a ^ b ^ c) + w[at + ((3 * i + 8) & 15)] + SINES[i + 1]) | 0, 11)) | 0;
      c = (d + turned((c + (d ^ a ^ b) + w[at + ((3 * i + 11) & 15)] + SINES[i + 2]) | 0, 16)) | 0;
      b = (c + turned((b + (c ^ d ^ a) + w[at + ((3 * i + 14) & 15)] + SINES[i + 3]) | 0, 23)) | 0;
    }
    for (let i = 48; i < 64; i += 4) {
      a = (b + turned((a + (c ^ (b | ~d)) + w[at + ((7 * i) & 15)] + SINES[i]) | 0, 6)) | 0;
      d = (a + turned((d + (b ^ (a | ~c)) + w[at + ((7 * i + 7) & 15)] + SINES[i + 1]) | 0, 10)) | 0;
      c = (d + turned((c + (a ^ (d | ~b)) + w[at + ((7 * i + 14) & 15)] + SINES[i + 2]) | 0, 15)) | 0;
      b = (c + turned((b + (d ^ (c | ~a)) + w[at + ((7 * i + 21) & 15)] + SINES[i + 3]) | 0, 21)) | 0;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
  }
}
