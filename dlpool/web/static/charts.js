// Lines over the last minutes, as SVG.

import { durationText } from "./dom.js";

export const SPAN_S = 600;
const SHORTEST_S = 120;
const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, TOP, BOTTOM] = [560, 154, 76, 12, 22];
const GAP_S = 20; // without samples, the line breaks

function svg(tag, attributes, text) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The next round number for the top of a scale: 1, 2 or 5 times a power of ten, or for bytes of two. */
function roundUp(value, isBytes) {
  const base = isBytes ? 1024 ** Math.max(0, Math.floor(Math.log(Math.max(value, 1)) / Math.log(1024))) : 1;
  const unit = Math.max(value / base, isBytes ? 1 : 4);
  const power = 10 ** Math.floor(Math.log10(unit));
  const step = [1, 2, 4, 5, 10].find((one) => one * power >= unit);
  return step * power * base;
}

/** Draw `series` (names of fields of the samples, which have `at` in seconds) into an svg element. */
export function draw(element, samples, series, text, isBytes = false) {
  const now = samples.length ? samples[samples.length - 1].at : Date.now() / 1000;
  const shown = samples.filter((one) => one.at > now - SPAN_S);
  const span = Math.max(SHORTEST_S, shown.length ? now - shown[0].at : 0);
  const top = roundUp(Math.max(...shown.flatMap((one) => series.map((name) => one[name] ?? 0)), 0), isBytes);
  const x = (at) => LEFT + (WIDTH - LEFT - 4) * (1 - (now - at) / span);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  element.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    parts.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - 4, y1: y(top * share), y2: y(top * share) }));
    parts.push(svg("text", { class: "axis", x: LEFT - 8, y: y(top * share) + 4, "text-anchor": "end" }, text(top * share)));
  }
  const first = `${durationText(span).replace(/ 00 s$/, "")} ago`;
  for (const [label, at, anchor] of [[first, now - span, "start"], ["now", now, "end"]]) {
    parts.push(svg("text", { class: "axis", x: x(at), y: HEIGHT - 4, "text-anchor": anchor }, label));
  }
  for (const name of series) {
    for (const run of runs(shown.filter((one) => Number.isFinite(one[name])))) {
      const line = run.map((one) => `${x(one.at).toFixed(1)},${y(one[name]).toFixed(1)}`);
      const floor = y(0).toFixed(1);
      const area = [`${x(run[0].at).toFixed(1)},${floor}`, ...line, `${x(run[run.length - 1].at).toFixed(1)},${floor}`];
      parts.push(svg("polygon", { class: `area ${name}`, points: area.join(" ") }));
      parts.push(svg("polyline", { class: `line ${name}`, points: line.join(" ") }));
    }
  }
  element.replaceChildren(...parts);
}

/** Samples that follow each other. */
function runs(samples) {
  const found = [];
  for (const one of samples) {
    const last = found[found.length - 1];
    if (last && one.at - last[last.length - 1].at < GAP_S) last.push(one);
    else found.push([one]);
  }
  return found;
}
