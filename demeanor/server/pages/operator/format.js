// Numbers and times as people read them.

export const when = (iso) => new Date(iso).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
export const ms = (value) => (value < 10 ? `${value.toFixed(1)} ms` : value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
export const amount = (n, noun) => `${n.toLocaleString()} ${noun}${n === 1 ? "" : "s"}`;
export const number = (value) => (value === null || value === undefined ? "–" : Math.abs(value) >= 100 || Number.isInteger(value) ? value.toLocaleString() : String(Number(value.toPrecision(3))));

// [value, low, high] as "0.31 (0.12 to 0.58)".
export const interval = (found) => (found ? `${number(found[0])} (${number(found[1])} to ${number(found[2])})` : "–");

// A share with its interval, in per cent.
export const share = (found) => (found ? `${(100 * found[0]).toFixed(0)}% (${(100 * found[1]).toFixed(0)} to ${(100 * found[2]).toFixed(0)})` : "–");
