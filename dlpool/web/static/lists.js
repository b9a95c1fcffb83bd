// Updates lists in place: rows are kept by key, so that focus and selection survive.

import { byId, el, setText, show } from "./dom.js";
import { countText, pluralText } from "./texts.js";

const AT_FIRST = 10; // rows that a phone shows first
const MORE = 50;
const phone = matchMedia("(max-width: 600px)");
const filled = new Map(); // the last arguments of fill() by list

/** Update the children of a list to match the items. Rows with the same key are kept. */
export function reconcile(list, items, key, make, update) {
  const names = items.map((item) => String(key(item)));
  const known = new Map();
  let lost = null;
  [...list.children].forEach((row, place) => {
    const name = row.dataset.key;
    if (names.includes(name) && !known.has(name)) return void known.set(name, row);
    if (row.contains(document.activeElement)) lost = { place, row, verb: document.activeElement.dataset.verb };
    row.remove(); // removed first: moving a row would lose its focus
  });
  items.forEach((item, place) => {
    const row = known.get(names[place]) ?? make(item);
    known.delete(names[place]); // a second item with the same key gets its own row
    row.dataset.key = names[place];
    update(row, item);
    if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
  });
  list.classList.toggle("empty", items.length === 0);
  if (lost) refocus(list, lost);
}

/** Move the focus from a removed row: to the next row if the user removed it, otherwise to the heading. */
function refocus(list, { place, row, verb }) {
  const next = "acted" in row.dataset && list.children[Math.min(place, list.children.length - 1)];
  const same = next && [...next.querySelectorAll("[data-verb]")].find((one) => one.dataset.verb === verb && !one.hidden);
  (same || list.closest("section")?.querySelector("h2"))?.focus();
}

/** Fill a list with {items, key, make, update, none}; on a phone with its first rows and a button for more. */
export function fill(id, given) {
  filled.set(id, given);
  const list = byId(id);
  const most = phone.matches ? (list.most ?? AT_FIRST) : Infinity;
  reconcile(list, given.items.slice(0, most), given.key, given.make, given.update);
  list.none ??= list.parentElement.querySelector(".none");
  if (list.none) {
    setText(list.none, given.items.length ? "" : given.none ?? "");
    show(list.none, !given.items.length);
  }
  moreButton(list, id, given.items.length - most);
  if (list.scrollHeight > list.clientHeight + 1) list.tabIndex = 0; // so that it can be scrolled with the keyboard
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
  if (left > 0) setText(list.more, `Show ${Math.min(left, MORE)} more of ${pluralText(left, "other")}`);
}

phone.addEventListener("change", () => filled.forEach((given, id) => fill(id, given)));

/** Show the number of items; "50 of 120" if the list does not show all. */
export function showCount(id, listed, total, limit) {
  setText(byId(id), total > listed && listed >= limit ? `${countText(listed)} of ${countText(total)}` : total ? countText(total) : "");
}
