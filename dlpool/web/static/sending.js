// Sends chunks of uploads and reads the server's settings for clients.

import { ApiError, fetchJson, authHeaders, unreachable, parseRetryAfter } from "./api.js";
import { TaskLimit, Stopped } from "./tasklimit.js";

const MAX_PARALLEL = 4; // upper limit of parallel requests
const SILENCE_MS = 30_000; // without progress, after the first bytes were sent
const ANSWER_MS = 120_000; // for the response, after the last byte was sent
const DEFAULTS = {
  max_file_size: Infinity, max_chunk_size: Infinity, concurrent_uploads: MAX_PARALLEL, retry_max_attempts: 5,
  retry_initial_delay: 0.5, enable_integrity_check: true,
};

/** Limits of parallel upload requests and of parallel uploads on this page. */
export const requests = new TaskLimit(MAX_PARALLEL);
export const files = new TaskLimit(MAX_PARALLEL);

let known = null;

/** Return the server's settings for clients; defaults if the server has none. Throws ApiError. */
export async function clientSettings(base) {
  if (known) return known;
  try {
    known = { ...DEFAULTS, ...(await fetchJson(`${base}/client`)) };
  } catch (error) {
    if (error.status !== 404) throw error;
    known = DEFAULTS;
  }
  requests.limit = files.limit = Math.max(1, Math.min(MAX_PARALLEL, known.concurrent_uploads));
  return known;
}

/** Send bytes; `onProgress` is called with the bytes sent, which fetch cannot report. Throws ApiError, Stopped. */
export function postBytes(url, blob, signal, onProgress) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(new Stopped());
    const request = new XMLHttpRequest();
    let timer = 0; // starts with the first progress: before it the browser may wait for a free connection
    const wait = (ms) => {
      clearTimeout(timer);
      timer = setTimeout(stop, ms);
    };
    const stop = () => request.abort();
    signal.addEventListener("abort", stop);
    request.upload.onprogress = (event) => {
      wait(SILENCE_MS);
      onProgress(event.loaded);
    };
    request.upload.onload = () => wait(ANSWER_MS);
    request.onloadend = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      if (signal.aborted) reject(new Stopped());
      else if (request.status === 0) reject(unreachable());
      else if (request.status === 200) resolve();
      else reject(new ApiError(request.status, parsed(request.responseText), parseRetryAfter(request.getResponseHeader("Retry-After"))));
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
