// Submits the form for a new job.

import { postJson } from "./api.js";
import { byId, setText } from "./dom.js";

/** Handle the form; `refreshSoon` is called after each submission. */
export function startForm(refreshSoon) {
  byId("push").addEventListener("submit", async (event) => {
    event.preventDefault();
    await push(event.target);
    refreshSoon();
  });
}

async function push(form) {
  const { url, save_path: savePath, ...own } = Object.fromEntries(new FormData(form));
  const given = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== "").map(([name, value]) =>
    [name, name === "limit_rate" && /^\d+$/.test(value) ? Number(value) : value]));
  const said = byId("push-said");
  said.dataset.state = "";
  setText(said, "Queueing");
  try {
    const { id } = await postJson("/api/v1/jobs", { url, save_path: savePath, dlpool: given });
    said.dataset.state = "good";
    setText(said, `Queued as ${id}`);
    form.reset();
    byId("url").focus();
  } catch (error) {
    said.dataset.state = "bad";
    setText(said, error.message);
  }
}
