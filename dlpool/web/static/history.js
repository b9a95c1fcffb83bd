// Keeps the samples of the charts: those of the server, then those of this page.

import { fetchJson } from "./api.js";
import { draw } from "./charts.js";
import { byId } from "./dom.js";
import { countText, now, sizeText } from "./texts.js";

const AGAIN_MS = 60_000;
const SEEN_APART_S = 10; // the longest interval between samples of this page (HIDDEN_MS)
const KEPT = 1000;

let kept = []; // samples of the server
let seen = []; // samples of this page since the server's last one
let asked = 0;

const span = () => Number(document.querySelector("[name=span]:checked").value);

/** Keep a sample {at, waiting, running, rate} and draw the charts. */
export function addSample(sample) {
  seen = [...seen.filter((one) => one.at < sample.at), sample].slice(-KEPT);
  drawCharts();
}

/** Load the samples of the server, at most once a minute unless `isWanted`. */
export async function loadHistory(isWanted = false) {
  if (!isWanted && Date.now() - asked < AGAIN_MS) return;
  asked = Date.now();
  try {
    const { samples } = await fetchJson(`/api/v1/history?since=${Math.floor((now() - span()) * 1000)}`);
    kept = samples.map(([ms, waiting, running, rate]) => ({ at: ms / 1000, waiting, running, rate }));
    seen = seen.filter((one) => one.at > (kept.at(-1)?.at ?? 0));
    drawCharts();
  } catch {
    // the server has no history or is unavailable: the page's own samples are drawn
  }
}

/** Return the median interval of the server's samples, in seconds. */
function interval() {
  const apart = kept.slice(1).map((one, place) => one.at - kept[place].at).sort((a, b) => a - b);
  return apart[Math.floor(apart.length / 2)] ?? 0;
}

function drawCharts() {
  const end = now();
  const samples = [...kept, ...seen];
  const checked = document.querySelector("[name=span]:checked");
  const common = { start: end - span(), end, gap: 3 * Math.max(interval(), SEEN_APART_S), startText: `${checked.parentElement.textContent.trim()} ago` };
  draw(byId("depth"), samples, { ...common, series: ["waiting", "running"], text: countText });
  draw(byId("rate"), samples, { ...common, series: ["rate"], text: (value) => (value ? `${sizeText(value)}/s` : "0"), isBytes: true });
}

for (const choice of document.querySelectorAll("[name=span]")) choice.addEventListener("change", () => {
  drawCharts();
  loadHistory(true);
});
new ResizeObserver(drawCharts).observe(byId("depth"));
