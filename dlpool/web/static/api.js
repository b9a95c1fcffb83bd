// Sends requests to the server with the token of this tab.

const KEY = "dlpool.token";

export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    super(body?.error ?? `the server answered ${status}`);
    this.status = status;
    this.code = body?.code ?? "";
    this.body = body;
    this.retryAfter = retryAfter;
  }

  /** Whether the server or the network is unavailable or overloaded, so that a retry may succeed. */
  get isUnavailable() {
    return this.status === 0 || this.status === 408 || this.status === 429 || (this.status >= 500 && this.status !== 507);
  }
}

export const unreachable = () => new ApiError(0, { error: "the server cannot be reached" }, null);

/** Dispatches "change" when the user signs in or out. */
export const session = new EventTarget();

export const hasToken = () => Boolean(sessionStorage.getItem(KEY));

/** Store the token; "" signs out. */
export function setToken(token) {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
  session.dispatchEvent(new Event("change"));
}

/** Return the user: the subject of the token, "secret" for the shared secret, "" without authentication. */
export function currentUser() {
  const token = sessionStorage.getItem(KEY) ?? "";
  const [, claims] = isWebToken(token) ? token.split(".") : [];
  if (!claims) return token && "secret";
  try {
    const bytes = Uint8Array.from(atob(claims.replace(/-/g, "+").replace(/_/g, "/")), (one) => one.charCodeAt(0));
    return `sub ${JSON.parse(new TextDecoder().decode(bytes)).sub}`;
  } catch {
    return "sub";
  }
}

/** A JSON web token has three parts separated by dots; any other text is a shared secret. */
const isWebToken = (token) => token.split(".").length === 3;

/** Return the headers that authenticate the user. */
export function authHeaders() {
  const token = sessionStorage.getItem(KEY);
  if (!token) return {};
  return isWebToken(token) ? { Authorization: `Bearer ${token}` } : { "X-Secret-Key": token };
}

export function parseRetryAfter(text) {
  return text && /^\d{1,4}$/.test(text) ? Number(text) : null;
}

/** Send a request and return the JSON of the response; null for 304 (see `etag`). Throws ApiError. */
export async function fetchJson(path, { method = "GET", body, etag, signal, priority = "auto", timeout = 15_000 } = {}) {
  const headers = { Accept: "application/json", ...authHeaders() };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (etag) headers["If-None-Match"] = etag;
  let response;
  try {
    const limit = AbortSignal.timeout(timeout);
    response = await fetch(path, {
      method, headers, priority, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw unreachable();
  }
  if (response.status === 304) return null;
  const value = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(response.status, value, parseRetryAfter(response.headers.get("Retry-After")));
  if (value === null) throw unreachable();
  return etag === undefined ? value : { value, etag: response.headers.get("ETag") };
}

/** Send a POST request with a JSON body. */
export const postJson = (path, body = {}, options = {}) => fetchJson(path, { method: "POST", body, ...options });
