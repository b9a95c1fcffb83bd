// The form for a new job.

import { tell } from "./api.js";
import { byId, say } from "./dom.js";

/** `lookSoon` is called when a job may have come. */
export function startForm(lookSoon) {
  byId("push").addEventListener("submit", async (event) => {
    event.preventDefault();
    await push(event.target);
    lookSoon();
  });
}

async function push(form) {
  const { url, save_path: savePath, ...own } = Object.fromEntries(new FormData(form));
  const given = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== "").map(([name, value]) =>
    [name, name === "limit_rate" && /^\d+$/.test(value) ? Number(value) : value]));
  const said = byId("push-said");
  said.dataset.state = "";
  say(said, "Queueing");
  try {
    const { id } = await tell("/api/v1/jobs", { url, save_path: savePath, dlpool: given });
    said.dataset.state = "good";
    say(said, `Queued as ${id}`);
    form.reset();
    byId("url").focus();
  } catch (error) {
    said.dataset.state = "bad";
    say(said, error.message);
  }
}
