// Requests to the server, with the token of this tab; every error says whether waiting may help.

const KEY = "dlpool.token";

export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    super(body?.error ?? `the server answered ${status}`);
    this.status = status;
    this.code = body?.code ?? "";
    this.body = body;
    this.retryAfter = retryAfter;
  }

  /** The server or the network is away, or has too much to do: the same request may succeed later. */
  get isAway() {
    return this.status === 0 || this.status === 408 || this.status === 429 || (this.status >= 500 && this.status !== 507);
  }
}

export const away = () => new ApiError(0, { error: "the server cannot be reached" }, null);

/** Says "change" when somebody signs in or out. */
export const session = new EventTarget();

export const hasToken = () => Boolean(sessionStorage.getItem(KEY));

/** Sign in; with "": sign out. */
export function setToken(token) {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
  session.dispatchEvent(new Event("change"));
}

/** Who asks: the subject of the token, "secret" for who knows that, "" where nobody is asked. */
export function who() {
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

/** A JSON web token has two dots; all else is a shared secret. */
const isWebToken = (token) => token.split(".").length === 3;

/** The headers that say who asks. */
export function authHeaders() {
  const token = sessionStorage.getItem(KEY);
  if (!token) return {};
  return isWebToken(token) ? { Authorization: `Bearer ${token}` } : { "X-Secret-Key": token };
}

export function retryAfterOf(text) {
  return text && /^\d{1,4}$/.test(text) ? Number(text) : null;
}

/** Ask for JSON. Answers null for 304 (see `etag`). Throws ApiError. */
export async function ask(path, { method = "GET", body, etag, signal, priority = "auto", timeout = 15_000 } = {}) {
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
    throw away();
  }
  if (response.status === 304) return null;
  const value = await response.json().catch(() => null);
  if (!response.ok) throw new ApiError(response.status, value, retryAfterOf(response.headers.get("Retry-After")));
  if (value === null) throw away();
  return etag === undefined ? value : { value, etag: response.headers.get("ETag") };
}

/** Ask for a change: POST, with JSON. */
export const tell = (path, body = {}, options = {}) => ask(path, { method: "POST", body, ...options });
