// Uploads one file: sends the chunks that the server lacks, with their MD5, then requests the merge. While the server
// is unavailable it retries without a limit.

import { ApiError, fetchJson, unreachable, session, postJson } from "./api.js";
import { FileHash } from "./hashing.js";
import { Stopped } from "./tasklimit.js";
import { clientSettings, postBytes, requests } from "./sending.js";

const CHUNK = 4 * 2 ** 20;
const MOST_CHUNKS = 4000;
const TEMPORARY = ["md5_mismatch", "task_merging"]; // codes of temporary errors
const LONGEST_WAIT_S = 8;

export class Upload {
  state = "queued"; // or uploading, waiting, pausing, paused, merging, completed, failed, lost (the file must be dropped again), elsewhere (in another tab)
  said = "";
  code = ""; // of the error that made it fail
  stored = 0; // bytes stored by the server
  moving = 0; // bytes in flight
  #base;
  #changed;
  #abort = new AbortController();
  #isEnding = false;
  #isAsked = false;
  #underWay = new Map(); // sent bytes of each chunk in flight, by index
  #hash = null;
  #limits = null;

  /** `changed` is called with the upload after each change of its state or progress. */
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

  /** Reset the upload so that it can run. */
  ready() {
    this.#abort = new AbortController();
    this.#isEnding = false;
    this.set("queued");
  }

  /** Run until the upload is complete, stopped, or failed. `isAsked`: also resume it if it is paused on the server. */
  async run({ isAsked = false } = {}) {
    this.#isAsked = isAsked;
    for (let waits = 0; ; ) {
      try {
        await this.#attempt();
        return;
      } catch (error) {
        if (error instanceof Stopped || this.signal.aborted) return;
        if (!(error instanceof ApiError)) return this.set("failed", `the file cannot be read: ${error.message}`);
        const mayPass = error.isUnavailable || error.status === 401 || TEMPORARY.includes(error.code);
        if (error.code === "task_paused") return this.set("paused", "it was paused on the server");
        if (!mayPass) return this.set("failed", error.message, error.code);
        waits = error.hasMoved ? 1 : waits + 1;
        this.set("waiting", error.status === 401 ? "sign in to continue" : `${error.message}; the upload continues automatically`);
        const first = this.#limits?.retry_initial_delay ?? 0.5;
        await this.#wait(error.retryAfter ?? Math.min(LONGEST_WAIT_S, first * 2 ** Math.min(waits - 1, 6)) * (0.5 + Math.random() / 2));
        if (this.signal.aborted) return;
      }
    }
  }

  /** Send no more chunks; chunks in flight finish. Called again, or without chunks in flight, stop at once. */
  pause() {
    if (this.state !== "uploading" || !this.#underWay.size) return this.stop();
    this.#isEnding = true;
    this.set("pausing");
  }

  /** Stop sending; stored chunks stay on the server. */
  stop(state = "paused", said = "") {
    this.#abort.abort();
    this.#underWay.clear();
    this.set(state, said);
  }

  /** Delete the upload on the server; a merged file is kept. Throws ApiError. */
  async remove() {
    try {
      await fetchJson(this.#task(), { method: "DELETE" });
    } catch (error) {
      const isGone = [403, 404].includes(error.status) && error.code !== "insufficient_scope";
      if (!isGone) throw error; // otherwise there is no such upload of this user
    }
  }

  /** Update the stored bytes from the server, without sending. */
  async loadStored() {
    if (!this.note.chunk) return;
    try {
      this.#count((await this.#status()).uploaded_chunks);
      this.#notify();
    } catch {
      // the stored bytes are informative only
    }
  }

  set(state, said = "", code = "") {
    Object.assign(this, { state, said, code });
    this.#notify();
  }

  async #attempt() {
    const limits = (this.#limits = await clientSettings(this.#base));
    this.note.chunk ??= Math.min(limits.max_chunk_size, Math.max(CHUNK, Math.ceil(this.note.size / MOST_CHUNKS / 2 ** 20) * 2 ** 20));
    this.#hash ??= new FileHash(this.file, this.note.chunk);
    const status = await requests.run(this.signal, () => this.#status(this.signal));
    if (status.status === "paused") {
      if (!this.#isAsked) throw new ApiError(409, { code: "task_paused" });
      await postJson(`${this.#task()}/resume`, {}, { signal: this.signal });
      this.#isAsked = false; // a later pause on the server stops this run
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
    const worker = async () => {
      while (missing.length && !this.#isEnding) {
        await this.#chunk(missing.shift(), limits);
        hasMoved = true;
      }
    };
    const workers = Array.from({ length: requests.limit }, worker);
    try {
      await Promise.all(workers);
    } catch (error) {
      missing.length = 0;
      await Promise.allSettled(workers); // no request of this attempt is in flight when the next attempt starts
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
        await requests.run(this.signal, () => this.#postBytes(index, blob, md5));
        break;
      } catch (error) {
        if (error.code !== "md5_mismatch" || resends >= limits.retry_max_attempts) throw error;
      } finally {
        this.#underWay.delete(index);
      }
    }
    this.stored += blob.size;
    this.#notify();
  }

  #postBytes(index, blob, md5) {
    const { id, size, folder, name, as } = this.note;
    const fields = new URLSearchParams({
      file_id: id, chunk_index: index, md5, total_chunks: this.chunks, file_size: size, relative_path: folder,
      filename: as ?? name, // so that the server rejects an invalid name with the first chunk
    });
    this.#underWay.set(index, 0);
    this.#notify();
    return postBytes(`${this.#base}/upload_chunk?${fields}`, blob, this.signal, (bytes) => {
      this.#underWay.set(index, bytes);
      this.#notify();
    });
  }

  async #merge() {
    this.set("merging");
    const { id, name, as, folder } = this.note;
    const body = { file_id: id, filename: as ?? name, total_chunks: this.chunks, relative_path: folder, expected_md5: this.#hash.ofFile(this.chunks) };
    try {
      const merged = await requests.run(this.signal, () => postJson(`${this.#base}/merge_chunks`, body, { signal: this.signal, timeout: 3_600_000 }));
      this.note.path = [merged.relative_path, merged.filePath.split("/").at(-1)].filter(Boolean).join("/");
      this.stored = this.note.size;
      this.set("completed");
    } catch (error) {
      // The server lacks chunks: retry and send them again.
      if (Array.isArray(error.body?.uploaded_chunks)) throw unreachable();
      throw error;
    }
  }

  #task() {
    return `${this.#base}/tasks/${encodeURIComponent(this.note.id)}`;
  }

  #status(signal) {
    return fetchJson(`${this.#base}/upload_status?file_id=${encodeURIComponent(this.note.id)}`, { signal });
  }

  #count(there) {
    const { chunk, size } = this.note;
    this.stored = there.reduce((sum, index) => sum + Math.max(0, Math.min(chunk, size - index * chunk)), 0);
  }

  /** Wait `seconds`, or until the upload is stopped, the network is back, or the user signs in. */
  #wait(seconds) {
    const events = [[this.signal, "abort"], [window, "online"], [session, "change"]];
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        for (const [target, event] of events) target.removeEventListener(event, wake);
        resolve();
      };
      const timer = setTimeout(wake, seconds * 1000);
      for (const [target, event] of events) target.addEventListener(event, wake);
    });
  }

  #notify() {
    this.moving = [...this.#underWay.values()].reduce((sum, bytes) => sum + bytes, 0);
    this.#changed(this);
  }
}
