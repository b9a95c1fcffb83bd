// Lists that change while somebody reads them: rows are kept by key, and the focus is never lost.

import { byId, el, say, show } from "./dom.js";
import { countText, pluralText } from "./texts.js";

const AT_FIRST = 10; // rows on a phone
const MORE = 50;
const phone = matchMedia("(max-width: 600px)");
const filled = new Map(); // how each list was filled, to do it again

/** Make the children of a list those of the items: kept by key, so that focus and selection survive. */
export function reconcile(list, items, key, make, update) {
  const names = items.map((item) => String(key(item)));
  const known = new Map();
  let lost = null;
  [...list.children].forEach((row, place) => {
    const name = row.dataset.key;
    if (names.includes(name) && !known.has(name)) return void known.set(name, row);
    if (row.contains(document.activeElement)) lost = { place, row, verb: document.activeElement.dataset.verb };
    row.remove(); // first of all: a row that is moved would lose the focus
  });
  items.forEach((item, place) => {
    const row = known.get(names[place]) ?? make(item);
    known.delete(names[place]); // another one of the same key gets a row of its own
    row.dataset.key = names[place];
    update(row, item);
    if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
  });
  list.classList.toggle("empty", items.length === 0);
  if (lost) refocus(list, lost);
}

/** The row that had the focus is gone: by an action, then the next row is wanted; or by itself. */
function refocus(list, { place, row, verb }) {
  const next = "acted" in row.dataset && list.children[Math.min(place, list.children.length - 1)];
  const same = next && [...next.querySelectorAll("[data-verb]")].find((one) => one.dataset.verb === verb && !one.hidden);
  (same || list.closest("section")?.querySelector("h2"))?.focus();
}

/** Fill a list of the page: {items, key, make, update, none}; on a phone its first rows, and a button for more. */
export function fill(id, given) {
  filled.set(id, given);
  const list = byId(id);
  const most = phone.matches ? (list.most ?? AT_FIRST) : Infinity;
  reconcile(list, given.items.slice(0, most), given.key, given.make, given.update);
  list.none ??= list.parentElement.querySelector(".none");
  if (list.none) {
    say(list.none, given.items.length ? "" : given.none ?? "");
    show(list.none, !given.items.length);
  }
  moreButton(list, id, given.items.length - most);
  if (list.scrollHeight > list.clientHeight + 1) list.tabIndex = 0; // so that keys can scroll it
  else list.removeAttribute("tabindex");
}

function moreButton(list, id, left) {
  if (!list.more && left <= 0) return;
  list.more ??= list.parentElement.appendChild(el("button", { type: "button", class: "more", on: { click: () => {
    const place = list.children.length;
    list.most = place + MORE;
    fill(id, filled.get(id));
    list.children[place]?.querySelector("button")?.focus();
  } } }));
  show(list.more, left > 0);
  if (left > 0) say(list.more, `Show ${Math.min(left, MORE)} more of ${pluralText(left, "other")}`);
}

phone.addEventListener("change", () => filled.forEach((given, id) => fill(id, given)));

/** How many there are; of those that a list leaves out it says so. */
export function sayCount(id, listed, total, limit) {
  say(byId(id), total > listed && listed >= limit ? `${countText(listed)} of ${countText(total)}` : total ? countText(total) : "");
}
