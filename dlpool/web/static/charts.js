// Draws line charts over time as SVG. One unit is one pixel of the page, so that labels have the page's font size.

const NS = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [150, 74, 6, 10, 24];

function svg(tag, attributes, text) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Return the top of a scale, a round number whose half is round, too. Bytes use powers of 1024, at least one KiB. */
export function topOf(value, isBytes) {
  const base = isBytes ? 1024 ** Math.max(1, Math.floor(Math.log(Math.max(value, 1)) / Math.log(1024))) : 1;
  const unit = Math.max(value / base, isBytes ? 1 : 4);
  const power = 10 ** Math.floor(Math.log10(unit));
  return (isBytes ? [1, 2, 4, 5, 10] : [1, 2, 4, 6, 8, 10]).find((step) => step * power >= unit) * power * base;
}

/** Draw `series` (names of fields of the samples) from `start` to `end`, both in seconds as `at` of the samples.
 *
 * The line is interrupted where samples are more than `gap` seconds apart. */
export function draw(element, samples, { series, start, end, gap, text, startText, isBytes = false }) {
  const width = Math.max(240, element.clientWidth);
  const shown = samples.filter((one) => one.at >= start && one.at <= end);
  const values = shown.flatMap((one) => series.map((name) => one[name])).filter(Number.isFinite);
  const top = topOf(Math.max(...values, 0), isBytes);
  const x = (at) => (LEFT + (width - LEFT - RIGHT) * ((at - start) / (end - start))).toFixed(1);
  const y = (value) => (TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)).toFixed(1);
  element.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    parts.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(top * share), y2: y(top * share) }));
    if (values.length) parts.push(svg("text", { class: "axis", x: LEFT - 8, y: Number(y(top * share)) + 4, "text-anchor": "end" }, text(top * share)));
  }
  if (!values.length) parts.push(svg("text", { class: "axis", x: (LEFT + width) / 2, y: y(top / 4), "text-anchor": "middle" }, "no data yet"));
  parts.push(svg("text", { class: "axis", x: LEFT, y: HEIGHT - 5 }, startText));
  parts.push(svg("text", { class: "axis", x: width - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, "now"));
  for (const name of series) {
    for (const run of runs(shown.filter((one) => Number.isFinite(one[name])), gap)) parts.push(...line(name, run.map((one) => [x(one.at), y(one[name])]), y(0)));
  }
  element.replaceChildren(...parts);
}

/** Return a line and the area below it; a dot for a single sample. */
function line(name, points, floor) {
  if (points.length === 1) return [svg("circle", { class: `dot ${name}`, cx: points[0][0], cy: points[0][1], r: 2.5 })];
  const joined = points.map((point) => point.join(","));
  const area = [`${points[0][0]},${floor}`, ...joined, `${points.at(-1)[0]},${floor}`];
  return [svg("polygon", { class: `area ${name}`, points: area.join(" ") }), svg("polyline", { class: `line ${name}`, points: joined.join(" ") })];
}

/** Split samples into runs without a gap. */
function runs(samples, gap) {
  const found = [];
  for (const one of samples) {
    if (found.length && one.at - found.at(-1).at(-1).at <= gap) found.at(-1).push(one);
    else found.push([one]);
  }
  return found;
}
