// Elements. Whatever comes from jobs goes in by textContent, never as markup.

import { visibleText } from "./texts.js";

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

/** Show or hide; a focus that would be lost goes to `instead`. */
export function show(element, isShown, instead) {
  const loses = !isShown && instead && element.contains(document.activeElement);
  element.hidden = !isShown;
  if (loses) instead.focus();
}

/** A button of a row. `verb` names it among its row's, `label` says to whom it belongs. */
export function button(text, label, act, verb = text) {
  return el("button", { type: "button", class: "quiet", text, "aria-label": label, "data-verb": verb, on: { click: act } });
}

/** A button that is pressed twice: the first time it asks. `question` may say what is at stake. */
export function sureButton(text, label, act, question = () => "Sure?") {
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

/** A progress bar: what is sure, and before it what is on its way. */
export function bar(label) {
  return el("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" },
    el("div", { class: "fill" }), el("div", { class: "moving" }));
}

/** `part` from 0 to 1, null for nobody knows; `moving`: the part that is on its way. */
export function setBar(element, part, moving = 0) {
  const width = (value) => `${(Math.min(1, Math.max(0, value)) * 100).toFixed(1)}%`;
  element.classList.toggle("unknown", part === null);
  if (part === null) element.removeAttribute("aria-valuenow");
  else element.setAttribute("aria-valuenow", String(Math.floor(Math.min(1, part) * 100)));
  element.firstChild.style.width = part === null ? "" : width(part);
  element.lastChild.style.width = width(part === null ? 0 : Math.min(moving, 1 - part));
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;

/** A path of which the end is seen, whatever its length and script. */
export function pathName(path) {
  const [, folder, file] = /^(.*\/)?([^]*)$/.exec(visibleText(path));
  const parts = [el("span", { class: "file" }, el("bdi", { text: file }))];
  if (folder) parts.unshift(el("span", { class: "folder", text: folder }));
  const isRtl = RIGHT_TO_LEFT.test(path);
  return el("strong", { class: isRtl ? "name rtl" : "name", title: path }, el("bdi", { class: "path" }, ...parts));
}
