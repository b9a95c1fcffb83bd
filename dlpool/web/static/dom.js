// Creates and updates elements. Data from jobs is inserted with textContent, never as markup.

import { visibleText } from "./texts.js";

export const byId = (id) => document.getElementById(id);

/** Create an element with properties (text, event listeners, attributes) and children. */
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

/** Set the text of an element; an equal text is not set again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show or hide an element; the focus of a hidden element moves to `instead`. */
export function show(element, isShown, instead) {
  const loses = !isShown && instead && element.contains(document.activeElement);
  element.hidden = !isShown;
  if (loses) instead.focus();
}

/** Create a button of a row. `verb` identifies it within the row; `label` is its accessible name. */
export function button(text, label, act, verb = text) {
  return el("button", { type: "button", class: "quiet", text, "aria-label": label, "data-verb": verb, on: { click: act } });
}

/** Create a button that must be pressed twice: the first press shows `question`. */
export function confirmButton(text, label, act, question = () => "Sure?") {
  let timer = 0;
  const made = button(text, label, () => {
    if (timer) {
      calm();
      act();
      return;
    }
    made.classList.add("sure");
    made.textContent = question();
    made.setAttribute("aria-label", `${label}: ${question()}`);
    timer = setTimeout(calm, 4000);
  });
  const calm = () => {
    clearTimeout(timer);
    timer = 0;
    made.classList.remove("sure");
    made.textContent = text;
    made.setAttribute("aria-label", label);
  };
  made.addEventListener("blur", calm);
  return made;
}

/** Create a progress bar with two parts: stored bytes, and bytes in flight after them. */
export function bar(label) {
  return el("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" },
    el("div", { class: "fill" }), el("div", { class: "moving" }));
}

/** Set the progress: `part` from 0 to 1, null if unknown; `moving` is the part in flight. */
export function setBar(element, part, moving = 0) {
  const width = (value) => `${(Math.min(1, Math.max(0, value)) * 100).toFixed(1)}%`;
  element.classList.toggle("unknown", part === null);
  if (part === null) element.removeAttribute("aria-valuenow");
  else element.setAttribute("aria-valuenow", String(Math.floor(Math.min(1, part) * 100)));
  element.firstChild.style.width = part === null ? "" : width(part);
  element.lastChild.style.width = width(part === null ? 0 : Math.min(moving, 1 - part));
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;

/** Show a path so that its end is visible, in left-to-right and right-to-left scripts. */
export function pathName(path) {
  const [, folder, file] = /^(.*\/)?([^]*)$/.exec(visibleText(path));
  const parts = [el("span", { class: "file" }, el("bdi", { text: file }))];
  if (folder) parts.unshift(el("span", { class: "folder", text: folder }));
  const isRtl = RIGHT_TO_LEFT.test(path);
  return el("strong", { class: isRtl ? "name rtl" : "name", title: path }, el("bdi", { class: "path" }, ...parts));
}
