// One upload: its chunks with their md5, only those that the server has not; then the merge.
// What is away is waited for, for as long as it takes.

import { ApiError, ask, away, session, tell } from "./api.js";
import { FileHash } from "./hashing.js";
import { Stopped } from "./lanes.js";
import { advice, post, requests } from "./sending.js";

const CHUNK = 4 * 2 ** 20;
const MOST_CHUNKS = 4000;
const PASSING = ["md5_mismatch", "task_merging"]; // refusals that pass
const LONGEST_WAIT_S = 8;

export class Upload {
  state = "queued"; // uploading, waiting, pausing, paused, merging, completed, failed, lost (drop it again), elsewhere
  said = "";
  code = ""; // of the refusal that ended it
  stored = 0; // bytes that the server has
  moving = 0; // bytes that are on their way
  #base;
  #changed;
  #abort = new AbortController();
  #isEnding = false;
  #isAsked = false;
  #underWay = new Map(); // bytes of each chunk that is under way
  #hash = null;
  #limits = null;

  /** `changed` is called with the upload whenever there is something new to show. */
  constructor(base, note, file, changed) {
    this.note = note;
    this.file = file;
    this.#base = base;
    this.#changed = changed;
  }

  get chunks() {
    return Math.max(1, Math.ceil(this.note.size / this.note.chunk));
  }

  get signal() {
    return this.#abort.signal;
  }

  /** Get ready to run (again). */
  ready() {
    this.#abort = new AbortController();
    this.#isEnding = false;
    this.set("queued");
  }

  /** Go on until it is whole, stopped, or refused for good. `isAsked`: also if it was paused on the server. */
  async run({ isAsked = false } = {}) {
    this.#isAsked = isAsked;
    for (let waits = 0; ; ) {
      try {
        await this.#once();
        return;
      } catch (error) {
        if (error instanceof Stopped || this.signal.aborted) return;
        if (!(error instanceof ApiError)) return this.set("failed", `the file cannot be read: ${error.message}`);
        const mayPass = error.isAway || error.status === 401 || PASSING.includes(error.code);
        if (error.code === "task_paused") return this.set("paused", "it was paused on the server");
        if (!mayPass) return this.set("failed", error.message, error.code);
        waits = error.hasMoved ? 1 : waits + 1;
        this.set("waiting", error.status === 401 ? "sign in to go on" : `${error.message}; it goes on by itself`);
        const first = this.#limits?.retry_initial_delay ?? 0.5;
        await this.#wait(error.retryAfter ?? Math.min(LONGEST_WAIT_S, first * 2 ** Math.min(waits - 1, 6)) * (0.5 + Math.random() / 2));
        if (this.signal.aborted) return;
      }
    }
  }

  /** Send no more chunks; those under way end. The second time, or if nothing moves: stop at once. */
  pause() {
    if (this.state !== "uploading" || !this.#underWay.size) return this.stop();
    this.#isEnding = true;
    this.set("pausing");
  }

  /** Stop sending; what is there stays there. */
  stop(state = "paused", said = "") {
    this.#abort.abort();
    this.#underWay.clear();
    this.set(state, said);
  }

  /** Remove what the server has of it, but not a file that is whole. Throws ApiError. */
  async remove() {
    try {
      await ask(this.#task(), { method: "DELETE" });
    } catch (error) {
      const isGone = [403, 404].includes(error.status) && error.code !== "insufficient_scope";
      if (!isGone) throw error; // else not there, or not ours: there is nothing to remove
    }
  }

  /** Show how much the server has of it, without sending more. */
  async look() {
    if (!this.note.chunk) return;
    try {
      this.#count((await this.#status()).uploaded_chunks);
      this.#tell();
    } catch {
      // it is only for show
    }
  }

  set(state, said = "", code = "") {
    Object.assign(this, { state, said, code });
    this.#tell();
  }

  async #once() {
    const limits = (this.#limits = await advice(this.#base));
    this.note.chunk ??= Math.min(limits.max_chunk_size, Math.max(CHUNK, Math.ceil(this.note.size / MOST_CHUNKS / 2 ** 20) * 2 ** 20));
    this.#hash ??= new FileHash(this.file, this.note.chunk);
    const status = await requests.run(this.signal, () => this.#status(this.signal));
    if (status.status === "paused") {
      if (!this.#isAsked) throw new ApiError(409, { code: "task_paused" });
      await tell(`${this.#task()}/resume`, {}, { signal: this.signal });
      this.#isAsked = false; // whoever pauses it from now on means this run
    }
    if (status.status !== "completed" && status.status !== "merging") await this.#send(status.uploaded_chunks, limits);
    await this.#merge();
  }

  async #send(there, limits) {
    const has = new Set(there);
    const missing = Array.from({ length: this.chunks }, (_, index) => index).filter((index) => !has.has(index));
    this.#count(there);
    this.set("uploading");
    let hasMoved = false;
    const lane = async () => {
      while (missing.length && !this.#isEnding) {
        await this.#chunk(missing.shift(), limits);
        hasMoved = true;
      }
    };
    const lanes = Array.from({ length: requests.limit }, lane);
    try {
      await Promise.all(lanes);
    } catch (error) {
      missing.length = 0;
      await Promise.allSettled(lanes); // nothing of this attempt is under way when the next one asks
      error.hasMoved = hasMoved;
      throw error;
    } finally {
      this.#underWay.clear();
    }
    if (this.#isEnding) {
      this.stop();
      throw new Stopped();
    }
  }

  async #chunk(index, limits) {
    const blob = this.file.slice(index * this.note.chunk, (index + 1) * this.note.chunk);
    for (let resends = 0; ; resends++) {
      const md5 = limits.enable_integrity_check ? await this.#hash.ofChunk(index) : "";
      try {
        await requests.run(this.signal, () => this.#post(index, blob, md5));
        break;
      } catch (error) {
        if (error.code !== "md5_mismatch" || resends >= limits.retry_max_attempts) throw error;
      } finally {
        this.#underWay.delete(index);
      }
    }
    this.stored += blob.size;
    this.#tell();
  }

  #post(index, blob, md5) {
    const { id, size, folder, name, as } = this.note;
    const fields = new URLSearchParams({
      file_id: id, chunk_index: index, md5, total_chunks: this.chunks, file_size: size, relative_path: folder,
      filename: as ?? name, // what cannot be merged as that is refused before it is sent
    });
    this.#underWay.set(index, 0);
    this.#tell();
    return post(`${this.#base}/upload_chunk?${fields}`, blob, this.signal, (bytes) => {
      this.#underWay.set(index, bytes);
      this.#tell();
    });
  }

  async #merge() {
    this.set("merging");
    const { id, name, as, folder } = this.note;
    const body = { file_id: id, filename: as ?? name, total_chunks: this.chunks, relative_path: folder, expected_md5: this.#hash.ofFile(this.chunks) };
    try {
      const merged = await requests.run(this.signal, () => tell(`${this.#base}/merge_chunks`, body, { signal: this.signal, timeout: 3_600_000 }));
      this.note.path = [merged.relative_path, merged.filePath.split("/").at(-1)].filter(Boolean).join("/");
      this.stored = this.note.size;
      this.set("completed");
    } catch (error) {
      // What was lost, or is not what it was, is sent again.
      if (Array.isArray(error.body?.uploaded_chunks)) throw away();
      throw error;
    }
  }

  #task() {
    return `${this.#base}/tasks/${encodeURIComponent(this.note.id)}`;
  }

  #status(signal) {
    return ask(`${this.#base}/upload_status?file_id=${encodeURIComponent(this.note.id)}`, { signal });
  }

  #count(there) {
    const { chunk, size } = this.note;
    this.stored = there.reduce((sum, index) => sum + Math.max(0, Math.min(chunk, size - index * chunk)), 0);
  }

  /** Wait, but not for what has come: a stop, the network, or somebody who has signed in. */
  #wait(seconds) {
    const comers = [[this.signal, "abort"], [window, "online"], [session, "change"]];
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        for (const [target, event] of comers) target.removeEventListener(event, wake);
        resolve();
      };
      const timer = setTimeout(wake, seconds * 1000);
      for (const [target, event] of comers) target.addEventListener(event, wake);
    });
  }

  #tell() {
    this.moving = [...this.#underWay.values()].reduce((sum, bytes) => sum + bytes, 0);
    this.#changed(this);
  }
}
