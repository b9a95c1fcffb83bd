// One upload: its chunks with their md5, a few at once, only those that the server has not; then the merge.
// What is away is waited for, for as long as it takes.

import { ApiError, ask, authHeaders, away, retryAfterOf, tell } from "./api.js";
import { md5OfBlob } from "./md5.js";

const AT_ONCE = 4;
const RESENDS = 5; // of a chunk that came with another md5
const PASSING = ["md5_mismatch", "task_merging"]; // refusals that pass
const LONGEST_WAIT_S = 8;
const SILENCE_MS = 30_000; // of a request that should move

class Stopped extends Error {}

export class Upload {
  /** `changed` is called with the upload whenever there is something new to show. */
  constructor(base, note, file, changed) {
    this.note = note;
    this.file = file;
    this.state = "waiting"; // uploading, waiting, paused, merging, completed, failed, lost (drop the file again)
    this.said = "";
    this.sent = 0;
    this.path = note.path ?? "";
    this.#base = base;
    this.#changed = changed;
  }

  #base;
  #changed;
  #abort = new AbortController();
  #moving = new Map(); // bytes of each chunk that is under way
  #stored = 0;

  get chunks() {
    return Math.max(1, Math.ceil(this.note.size / this.note.chunk));
  }

  /** Go on until it is whole, stopped, or refused for good. */
  async run() {
    this.#abort = new AbortController();
    let waits = 0;
    while (!this.#abort.signal.aborted) {
      try {
        await this.#once();
        return;
      } catch (error) {
        if (error instanceof Stopped || this.#abort.signal.aborted) return;
        if (!(error instanceof ApiError)) return this.#set("failed", `the file cannot be read: ${error.message}`);
        if (error.code === "task_paused") return this.#set("paused", "somebody else paused it");
        if (!error.isAway && !PASSING.includes(error.code)) return this.#set("failed", error.message);
        waits = error.hasMoved ? 0 : waits + 1;
        this.#set("waiting", `${error.message}; it goes on by itself`);
        await this.#wait(error.retryAfter ?? Math.min(LONGEST_WAIT_S, 0.5 * 2 ** Math.min(waits, 6)) * (0.5 + Math.random() / 2));
      }
    }
  }

  /** Stop sending; what is there stays there. */
  stop(state = "paused") {
    this.#abort.abort();
    this.#moving.clear();
    this.#set(state, "");
  }

  /** Remove what the server has of it, but not a file that is whole. */
  async remove() {
    this.stop();
    try {
      await ask(`${this.#base}/tasks/${encodeURIComponent(this.note.id)}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }

  /** Show how much the server has of it, without sending more. */
  async look() {
    try {
      const { uploaded_chunks: there } = await ask(`${this.#base}/upload_status?file_id=${encodeURIComponent(this.note.id)}`);
      this.#stored = there.reduce((sum, index) => sum + this.#sizeOf(index), 0);
      this.#tell();
    } catch {
      // it is only for show
    }
  }

  async #once() {
    const signal = this.#abort.signal;
    const status = await ask(`${this.#base}/upload_status?file_id=${encodeURIComponent(this.note.id)}`, { signal });
    if (status.status === "paused") await tell(`${this.#base}/tasks/${encodeURIComponent(this.note.id)}/resume`, {}, { signal });
    if (status.status !== "completed" && status.status !== "merging") await this.#send(new Set(status.uploaded_chunks));
    await this.#merge();
  }

  async #send(there) {
    const missing = Array.from({ length: this.chunks }, (_, index) => index).filter((index) => !there.has(index));
    this.#stored = [...there].reduce((sum, index) => sum + this.#sizeOf(index), 0);
    this.#set("uploading", "");
    let hasMoved = false;
    const lane = async () => {
      for (let index = missing.shift(); index !== undefined; index = missing.shift()) {
        await this.#chunk(index);
        hasMoved = true;
      }
    };
    const lanes = Array.from({ length: AT_ONCE }, lane);
    try {
      await Promise.all(lanes);
    } catch (error) {
      missing.length = 0;
      await Promise.allSettled(lanes); // nothing of this attempt is under way when the next one asks
      error.hasMoved = hasMoved;
      throw error;
    } finally {
      this.#moving.clear();
    }
  }

  async #chunk(index) {
    const blob = this.#blob(index);
    for (let resends = 0; ; resends++) {
      const md5 = await md5OfBlob(blob);
      try {
        await this.#post(index, blob, md5);
        break;
      } catch (error) {
        if (error.code !== "md5_mismatch" || resends >= RESENDS) throw error;
      }
    }
    this.#stored += blob.size;
    this.#moving.delete(index);
    this.#tell();
  }

  #sizeOf(index) {
    return Math.min(this.note.chunk, this.note.size - index * this.note.chunk);
  }

  #blob(index) {
    return this.file.slice(index * this.note.chunk, (index + 1) * this.note.chunk);
  }

  /** fetch cannot say how far a body is: this is XMLHttpRequest. */
  #post(index, blob, md5) {
    const fields = new URLSearchParams({
      file_id: this.note.id, chunk_index: index, md5, total_chunks: this.chunks, file_size: this.note.size,
    });
    return new Promise((resolve, reject) => {
      const signal = this.#abort.signal;
      if (signal.aborted) return reject(new Stopped());
      const request = new XMLHttpRequest();
      let timer = 0;
      const move = () => {
        clearTimeout(timer);
        timer = setTimeout(() => request.abort(), SILENCE_MS);
      };
      const stop = () => request.abort();
      signal.addEventListener("abort", stop);
      request.upload.onprogress = (event) => {
        move();
        this.#moving.set(index, event.loaded);
        this.#tell();
      };
      request.onloadend = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", stop);
        this.#moving.delete(index);
        if (signal.aborted) reject(new Stopped());
        else if (request.status === 0) reject(away());
        else if (request.status === 200) resolve();
        else reject(new ApiError(request.status, parsed(request.responseText), retryAfterOf(request.getResponseHeader("Retry-After"))));
      };
      request.open("POST", `${this.#base}/upload_chunk?${fields}`);
      for (const [name, value] of Object.entries(authHeaders())) request.setRequestHeader(name, value);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      move();
      request.send(blob);
    });
  }

  async #merge() {
    this.#set("merging", "");
    const { id, name } = this.note;
    try {
      const body = { file_id: id, filename: name, total_chunks: this.chunks };
      const merged = await tell(`${this.#base}/merge_chunks`, body, { signal: this.#abort.signal, timeout: 3_600_000 });
      this.path = merged.relative_path || merged.filePath;
      this.#stored = this.note.size;
      this.#set("completed", "");
    } catch (error) {
      // What was lost, or is not what it was, is sent again.
      if (Array.isArray(error.body?.uploaded_chunks)) throw away();
      throw error;
    }
  }

  /** Wait, but not for what has come: a stop, or the network. */
  #wait(seconds) {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        this.#abort.signal.removeEventListener("abort", wake);
        window.removeEventListener("online", wake);
        resolve();
      };
      const timer = setTimeout(wake, seconds * 1000);
      this.#abort.signal.addEventListener("abort", wake);
      window.addEventListener("online", wake);
    });
  }

  #set(state, said) {
    this.state = state;
    this.said = said;
    this.#tell();
  }

  #tell() {
    this.sent = this.#stored + [...this.#moving.values()].reduce((sum, bytes) => sum + bytes, 0);
    this.#changed(this);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
