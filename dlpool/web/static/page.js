// The page: one request a tick brings all that is shown.

import { act, afterChanges, complain } from "./actions.js";
import { ask, hasToken, session, setToken } from "./api.js";
import { byId, say, show, sureButton } from "./dom.js";
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
let isLooking = false;
let isWanted = false; // another look, as something was changed during this one
let overview = null;
let seenAt = 0;

// --- looking ---------------------------------------------------------------------------------------------------------

async function look() {
  clearTimeout(timer);
  if (isLooking) return void (isWanted = true);
  isLooking = true;
  isWanted = false;
  let wait = document.hidden ? HIDDEN_MS : TICK_MS;
  try {
    const answer = await ask(`/api/v1/overview?state=${byId("state").value}`, { etag, priority: "high" });
    if (answer) {
      ({ value: overview, etag } = answer);
      setServerTime(overview.now);
    }
    failures = 0;
    seenAt = Date.now();
    trouble(null);
    show(byId("login"), false);
    show(byId("main"), true);
    drawAll(overview);
    if (overview.list_limits !== undefined) loadHistory(); // a server that keeps none says no limits either
  } catch (error) {
    etag = "";
    if (error.status === 401 || error.code === "insufficient_scope") return askToSignIn(error);
    failures += 1;
    wait = Math.max(wait, (error.retryAfter ?? 0) * 1000, Math.min(LONGEST_WAIT_MS, 1000 * 2 ** failures));
    trouble(error);
  } finally {
    isLooking = false;
  }
  timer = setTimeout(look, isWanted ? 0 : wait);
}

/** The next look now: something was changed here. */
function lookSoon() {
  etag = "";
  isWanted = true;
  clearTimeout(timer);
  timer = setTimeout(look, 150);
}

/** Say what is wrong with what is shown, null for nothing. */
function trouble(error) {
  const isRedis = error?.status === 503 && error.code === "redis";
  const isHalted = overview?.is_halted ?? false;
  byId("health").dataset.state = error ? "bad" : isHalted ? "wait" : "good";
  say(byId("health"), error ? (isRedis ? "Redis away" : "Offline") : isHalted ? "Paused" : "Live");
  const text = error?.status === undefined && error ? `the page is broken: ${error.message}` : error?.message ?? "";
  const more = isRedis ? "Uploads go on; this page does so by itself." : "This page goes on by itself.";
  show(byId("banner"), Boolean(error));
  say(byId("banner-text"), text && `${text[0].toUpperCase()}${text.slice(1)}. ${more}`);
  say(byId("banner-age"), text && seenAt ? `What is shown is as of ${clockText(seenAt)}, ${agoText(seenAt / 1000)}.` : "");
  document.body.classList.toggle("stale", Boolean(error));
  drawHalted(overview);
}

// --- signing in and out ----------------------------------------------------------------------------------------------

function askToSignIn(error) {
  show(byId("login"), true);
  show(byId("main"), false);
  for (const id of ["halt", "halted", "banner", "sign-out"]) show(byId(id), false);
  complain("");
  byId("health").dataset.state = "wait";
  say(byId("health"), error.status === 401 ? "Signed out" : "Not allowed");
  say(byId("login-said"), hasToken() ? error.message : "");
  byId("token").focus();
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token").value.trim());
  byId("token").value = "";
});
session.addEventListener("change", () => {
  show(byId("sign-out"), hasToken());
  look();
});
const signOut = sureButton("Sign out", "Sign out", async () => {
  await forgetUploads();
  setToken("");
}, unfinishedText);
signOut.id = "sign-out";
signOut.hidden = !hasToken();

// --- beginning -------------------------------------------------------------------------------------------------------

const halt = sureButton("Pause queue", "Pause queue", () => act("Pause queue", "/queue/pause"), () => "Begin no more jobs?");
halt.id = "halt";
halt.hidden = true;
for (const made of [halt, signOut]) made.classList.remove("quiet");
byId("tools").append(halt, signOut);
byId("unhalt").addEventListener("click", () => act("Resume queue", "/queue/resume"));
byId("state").addEventListener("change", lookSoon);
document.addEventListener("visibilitychange", () => document.hidden || look());
window.addEventListener("online", look);

/** On a narrow page what matters comes first, for eyes and keys alike; the form is closed there. */
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
afterChanges(lookSoon);
startForm(lookSoon);
look();
startUploads();
