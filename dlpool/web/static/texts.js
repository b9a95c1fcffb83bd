// Formats numbers and times. Relative times use the server's clock if the server sends its time.

let offsetMs = 0;

/** Set the clock from the server's time (RFC 3339). */
export function setServerTime(moment) {
  const told = Date.parse(moment ?? "");
  offsetMs = Number.isFinite(told) ? told - Date.now() : 0;
}

/** Return the current time in seconds since 1970. */
export const now = () => (Date.now() + offsetMs) / 1000;

export const countText = (count) => Math.round(count).toLocaleString("en");

/** "1 worker", "2 workers". */
export const pluralText = (count, word) => `${countText(count)} ${word}${count === 1 ? "" : "s"}`;

/** Format bytes in powers of 1024. */
export function sizeText(bytes) {
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1000 || unit === "TiB") return `${unit === "B" || value >= 100 ? Math.round(value) : value.toFixed(1).replace(".0", "")} ${unit}`;
    value /= 1024;
  }
  return "";
}

export function durationText(given) {
  if (!Number.isFinite(given)) return "";
  const seconds = Math.max(1, Math.round(given)); // rounded once, so that no part is rounded up to 60
  const [minutes, hours, days] = [60, 3600, 86400].map((unit) => Math.floor(seconds / unit));
  const padded = (value) => String(value).padStart(2, "0");
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${minutes} min ${padded(seconds % 60)} s`;
  if (seconds < 86400) return `${hours} h ${padded(minutes % 60)} min`;
  return `${days} d ${hours % 24} h`;
}

/** Format the age of a time (RFC 3339, or seconds since 1970) with one unit. */
export function agoText(moment) {
  const seconds = now() - (typeof moment === "number" ? moment : Date.parse(moment) / 1000);
  if (!Number.isFinite(seconds)) return "";
  return seconds < 5 ? "just now" : `${durationText(seconds).split(" ").slice(0, 2).join(" ")} ago`;
}

/** Format the local time of day: 23:41:07; with the date if it is not today. */
export function clockText(moment) {
  const at = new Date(moment);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}

/** Quote a name that is empty or has spaces at its ends. */
export const visibleText = (name) => (/^\s|\s$|^$/.test(name) ? `“${name}”` : name);
