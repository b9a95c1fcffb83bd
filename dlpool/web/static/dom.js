// Elements and texts. Whatever comes from jobs goes in by textContent, never as markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties (class, text, and attributes) and children. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Set a text, and leave the page alone if it is that already. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, isShown) {
  element.hidden = !isShown;
}

/** Make the children of a list those of the items: kept by key, so that focus and selection survive. */
export function reconcile(list, items, key, make, update) {
  const names = items.map((item) => String(key(item)));
  const known = new Map();
  for (const row of [...list.children]) {
    const name = row.dataset.key;
    if (names.includes(name) && !known.has(name)) known.set(name, row);
    else row.remove(); // first of all: a row that is moved would lose the focus
  }
  items.forEach((item, place) => {
    const row = known.get(names[place]) ?? make(item);
    known.delete(names[place]); // another one of the same key gets a row of its own
    row.dataset.key = names[place];
    update(row, item);
    if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
  });
  list.classList.toggle("empty", items.length === 0);
}

/** A button that is pressed twice: the first time it asks. */
export function sureButton(text, label, act) {
  let timer = 0;
  const button = el("button", { type: "button", class: "quiet", text, "aria-label": label });
  const calm = () => {
    clearTimeout(timer);
    timer = 0;
    button.classList.remove("sure");
    button.textContent = text;
    button.setAttribute("aria-label", label);
  };
  button.addEventListener("blur", calm);
  button.addEventListener("click", () => {
    if (timer) {
      calm();
      act();
      return;
    }
    button.classList.add("sure");
    button.textContent = "Sure?";
    button.setAttribute("aria-label", `${label}: sure?`);
    timer = setTimeout(calm, 4000);
  });
  return button;
}

/** A progress bar; the row's `fill` and `setBar` change it. */
export function bar(label) {
  return el("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" },
    el("div", { class: "fill" }));
}

/** `part` from 0 to 1, null for nobody knows. */
export function setBar(element, part) {
  element.classList.toggle("unknown", part === null);
  if (part === null) element.removeAttribute("aria-valuenow");
  else element.setAttribute("aria-valuenow", String(Math.floor(part * 100)));
  element.firstChild.style.width = part === null ? "" : `${(part * 100).toFixed(1)}%`;
}

/** Bytes as text, in powers of 1024. */
export function sizeText(bytes) {
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1000 || unit === "TiB") return `${unit === "B" || value >= 100 ? Math.round(value) : value.toFixed(1).replace(".0", "")} ${unit}`;
    value /= 1024;
  }
  return "";
}

export function durationText(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(Math.round(seconds % 60)).padStart(2, "0")} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${String(Math.floor(seconds / 60) % 60).padStart(2, "0")} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

/** How long ago a moment (RFC 3339) was. */
export function agoText(moment) {
  const seconds = (Date.now() - Date.parse(moment)) / 1000;
  return seconds < 5 ? "just now" : `${durationText(seconds).replace(/ \d\d (s|min)$/, "").replace(/ \d+ h$/, "")} ago`;
}
