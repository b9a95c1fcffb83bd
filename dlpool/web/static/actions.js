// What a person does with jobs and nodes: it is told to the server, and what cannot be done stays readable.

import { tell } from "./api.js";
import { byId, say, show } from "./dom.js";
import { pluralText } from "./texts.js";

const API = "/api/v1";

let lookSoon = () => {};

/** What is to be done after each change. */
export function afterChanges(look) {
  lookSoon = look;
}

/** An error that stays until it is dismissed, or until something has been done; "" for none. */
export function complain(text) {
  say(byId("complaint"), text && `${text[0].toUpperCase()}${text.slice(1)}`);
  show(byId("alert"), Boolean(text));
}

/** Ask for a change. `what` is what the button says, `row` the row that it may end. */
export async function act(what, path, row) {
  await attempt(what, row, () => tell(API + path));
}

/** Ask for the same change of many jobs; it is said how many could not be changed, and why the first of them. */
export async function actAll(what, verb, ids, row) {
  await attempt(what, row, async () => {
    const { results } = await tell(`${API}/jobs/batch`, { verb, ids });
    const refused = results.filter((one) => one.error);
    if (refused.length) throw new Error(ids.length === 1 ? refused[0].error : `${refused.length} of ${pluralText(ids.length, "job")} could not be changed: ${refused[0].error}`);
  });
}

async function attempt(what, row, change) {
  if (row) row.dataset.acted = "";
  try {
    await change();
    complain("");
  } catch (error) {
    complain(`${what}: ${error.message}`);
    if (row) delete row.dataset.acted;
  }
  lookSoon();
}

byId("dismiss").addEventListener("click", () => {
  complain("");
  byId("main").focus();
});
