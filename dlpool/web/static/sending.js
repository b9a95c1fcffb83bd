// Requests of uploads: what the server asks clients to keep to, and one chunk on its way.

import { ApiError, ask, authHeaders, away, retryAfterOf } from "./api.js";
import { Lanes, Stopped } from "./lanes.js";

const AT_ONCE = 4; // at most, whatever the server says
const SILENCE_MS = 30_000; // of a body that has begun to move
const ANSWER_MS = 120_000; // after the last byte: the server writes it to its disk
const DEFAULTS = {
  max_file_size: Infinity, max_chunk_size: Infinity, concurrent_uploads: AT_ONCE, retry_max_attempts: 5,
  retry_initial_delay: 0.5, enable_integrity_check: true,
};

/** All requests of uploads of this page, and all files that are under way. */
export const requests = new Lanes(AT_ONCE);
export const files = new Lanes(AT_ONCE);

let known = null;

/** What the server wants of clients; a server that says nothing gets our own measure. Throws ApiError. */
export async function advice(base) {
  if (known) return known;
  try {
    known = { ...DEFAULTS, ...(await ask(`${base}/client`)) };
  } catch (error) {
    if (error.status !== 404) throw error;
    known = DEFAULTS;
  }
  requests.limit = files.limit = Math.max(1, Math.min(AT_ONCE, known.concurrent_uploads));
  return known;
}

/** POST bytes; `moved` hears how many are sent. fetch cannot say that: this is XMLHttpRequest. Throws ApiError, Stopped. */
export function post(url, blob, signal, moved) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(new Stopped());
    const request = new XMLHttpRequest();
    let timer = 0; // it starts with the first progress: before that the browser may still look for a connection
    const wait = (ms) => {
      clearTimeout(timer);
      timer = setTimeout(stop, ms);
    };
    const stop = () => request.abort();
    signal.addEventListener("abort", stop);
    request.upload.onprogress = (event) => {
      wait(SILENCE_MS);
      moved(event.loaded);
    };
    request.upload.onload = () => wait(ANSWER_MS);
    request.onloadend = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      if (signal.aborted) reject(new Stopped());
      else if (request.status === 0) reject(away());
      else if (request.status === 200) resolve();
      else reject(new ApiError(request.status, parsed(request.responseText), retryAfterOf(request.getResponseHeader("Retry-After"))));
    };
    request.open("POST", url);
    for (const [name, value] of Object.entries(authHeaders())) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(blob);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
