// Runs the page: one request for the overview every TICK_MS, signing in, and the layout.

import { runAction, onChange, showError } from "./actions.js";
import { fetchJson, hasToken, session, setToken } from "./api.js";
import { byId, setText, show, confirmButton } from "./dom.js";
import { drawAll, drawHalted } from "./drawing.js";
import { loadHistory } from "./history.js";
import { startForm } from "./newjob.js";
import { agoText, clockText, setServerTime } from "./texts.js";
import { forgetUploads, startUploads, unfinishedText } from "./uploads.js";

const TICK_MS = 1500;
const HIDDEN_MS = 10_000;
const LONGEST_WAIT_MS = 10_000;

let etag = "";
let timer = 0;
let failures = 0;
let isRefreshing = false;
let isWanted = false; // refresh again, because something changed during this refresh
let overview = null;
let seenAt = 0;

// --- refreshing ------------------------------------------------------------------------------------------------------

async function refresh() {
  clearTimeout(timer);
  if (isRefreshing) return void (isWanted = true);
  isRefreshing = true;
  isWanted = false;
  let wait = document.hidden ? HIDDEN_MS : TICK_MS;
  try {
    const answer = await fetchJson(`/api/v1/overview?state=${byId("state").value}`, { etag, priority: "high" });
    if (answer) {
      ({ value: overview, etag } = answer);
      setServerTime(overview.now);
    }
    failures = 0;
    seenAt = Date.now();
    showConnection(null);
    show(byId("login"), false);
    show(byId("main"), true);
    drawAll(overview);
    if (overview.list_limits !== undefined) loadHistory(); // a server without history sends no limits either
  } catch (error) {
    etag = "";
    if (error.status === 401 || error.code === "insufficient_scope") return askToSignIn(error);
    failures += 1;
    wait = Math.max(wait, (error.retryAfter ?? 0) * 1000, Math.min(LONGEST_WAIT_MS, 1000 * 2 ** failures));
    showConnection(error);
  } finally {
    isRefreshing = false;
  }
  timer = setTimeout(refresh, isWanted ? 0 : wait);
}

/** Refresh at once, because the user changed something. */
function refreshSoon() {
  etag = "";
  isWanted = true;
  clearTimeout(timer);
  timer = setTimeout(refresh, 150);
}

/** Show an error of the last refresh, null for none. */
function showConnection(error) {
  const isRedis = error?.status === 503 && error.code === "redis";
  const isHalted = overview?.is_halted ?? false;
  byId("health").dataset.state = error ? "bad" : isHalted ? "wait" : "good";
  setText(byId("health"), error ? (isRedis ? "Redis unavailable" : "Offline") : isHalted ? "Paused" : "Live");
  const text = error?.status === undefined && error ? `internal error of the page: ${error.message}` : error?.message ?? "";
  const more = isRedis ? "Uploads continue; this page reconnects automatically." : "This page reconnects automatically.";
  show(byId("banner"), Boolean(error));
  setText(byId("banner-text"), text && `${text[0].toUpperCase()}${text.slice(1)}. ${more}`);
  setText(byId("banner-age"), text && seenAt ? `Data is from ${clockText(seenAt)}, ${agoText(seenAt / 1000)}.` : "");
  document.body.classList.toggle("stale", Boolean(error));
  drawHalted(overview);
}

// --- signing in and out ----------------------------------------------------------------------------------------------

function askToSignIn(error) {
  show(byId("login"), true);
  show(byId("main"), false);
  for (const id of ["halt", "halted", "banner", "sign-out"]) show(byId(id), false);
  showError("");
  byId("health").dataset.state = "wait";
  setText(byId("health"), error.status === 401 ? "Signed out" : "Not allowed");
  setText(byId("login-said"), hasToken() ? error.message : "");
  byId("token").focus();
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token").value.trim());
  byId("token").value = "";
});
session.addEventListener("change", () => {
  show(byId("sign-out"), hasToken());
  refresh();
});
const signOut = confirmButton("Sign out", "Sign out", async () => {
  await forgetUploads();
  setToken("");
}, unfinishedText);
signOut.id = "sign-out";
signOut.hidden = !hasToken();

// --- starting --------------------------------------------------------------------------------------------------------

const halt = confirmButton("Pause queue", "Pause queue", () => runAction("Pause queue", "/queue/pause"), () => "Start no more jobs?");
halt.id = "halt";
halt.hidden = true;
for (const made of [halt, signOut]) made.classList.remove("quiet");
byId("tools").append(halt, signOut);
byId("unhalt").addEventListener("click", () => runAction("Resume queue", "/queue/resume"));
byId("state").addEventListener("change", refreshSoon);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
window.addEventListener("online", refresh);

/** Order the parts of the page: on a narrow page by importance, with the form closed. */
function arrange(narrow) {
  const parts = (names) => names.map((name) => byId(`${name}-part`));
  if (narrow.matches) byId("main").append(...parts(["failed", "nodes", "running", "charts", "listed", "uploads", "push"]));
  else {
    byId("main").append(byId("charts-part"), byId("wide"), byId("side"));
    byId("wide").append(...parts(["failed", "running", "listed"]));
    byId("side").append(...parts(["nodes", "uploads", "push"]));
  }
  byId("push-more").open = !narrow.matches;
}

const narrow = matchMedia("(max-width: 900px)");
narrow.addEventListener("change", arrange);
arrange(narrow);
onChange(refreshSoon);
startForm(refreshSoon);
refresh();
startUploads();
