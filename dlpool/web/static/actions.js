// Sends the user's changes of jobs, nodes and the queue to the server, and shows errors until they are dismissed.

import { postJson } from "./api.js";
import { byId, setText, show } from "./dom.js";
import { pluralText } from "./texts.js";

const API = "/api/v1";

let refreshSoon = () => {};

/** Set the function that is called after each change. */
export function onChange(refresh) {
  refreshSoon = refresh;
}

/** Show an error until it is dismissed or another change succeeds; "" hides it. */
export function showError(text) {
  setText(byId("complaint"), text && `${text[0].toUpperCase()}${text.slice(1)}`);
  show(byId("alert"), Boolean(text));
}

/** Request a change. `what` is the label of the button; `row` is the row that the change may remove. */
export async function runAction(what, path, row) {
  await attempt(what, row, () => postJson(API + path));
}

/** Request the same change of several jobs. The error names how many failed, and the reason of the first. */
export async function runBatch(what, verb, ids, row) {
  await attempt(what, row, async () => {
    const { results } = await postJson(`${API}/jobs/batch`, { verb, ids });
    const refused = results.filter((one) => one.error);
    if (refused.length) throw new Error(ids.length === 1 ? refused[0].error : `${refused.length} of ${pluralText(ids.length, "job")} could not be changed: ${refused[0].error}`);
  });
}

async function attempt(what, row, change) {
  if (row) row.dataset.acted = "";
  try {
    await change();
    showError("");
  } catch (error) {
    showError(`${what}: ${error.message}`);
    if (row) delete row.dataset.acted;
  }
  refreshSoon();
}

byId("dismiss").addEventListener("click", () => {
  showError("");
  byId("main").focus();
});
