// Shadows and online evaluators: what was due and done, scores with intervals, drift.
import { el } from "../dom.js";
import { call } from "../api.js";
import { amount, interval, when } from "./format.js";
import { warnings } from "./experiments.js";

export async function evaluatorsPage() {
  const { jobs, notes } = await call("GET", "/v1/demeanor/traffic");
  if (!jobs.length) return [...warnings(notes), el("p", {}, "This stack has had no shadows and no evaluators.")];
  return [...warnings(notes), ...jobs.map(job)];
}

function job({ kind, name, version, counts, silent, last, mean, difference, same_text: same, drift }) {
  const facts = [
    ["Turns", turns(counts)],
    ["Last", last ? when(last) : "never"],
    ["Mean score", interval(mean)],
    difference && ["Shadow less live", interval(difference)],
    same?.[1] > 0 && ["Same text", `${same[0]} of ${same[1]}`],
    drift && ["Drift", drift.drifted ? `yes, at score ${drift.alarms.map(([at]) => at).join(", ")}` : `no alarm in ${drift.scores} scores`],
    drift?.baseline && ["Normal", interval(drift.baseline)],
    drift?.recent && ["Recent", interval(drift.recent)],
  ].filter(Boolean);
  return el("section", { "aria-label": `${kind} ${name}` },
    el("h2", {}, `${kind} ${name} `, silent && el("span", { class: "chip bad" }, "has never run"), drift?.drifted && el("span", { class: "chip bad" }, "drift")),
    el("dl", { class: "facts" }, facts.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)])),
    el("p", { class: "soft" }, `Declaration ${version.slice(0, 12)}`));
}

// How many turns were selected, and what became of them.
function turns({ due = 0, ...outcomes }) {
  const became = Object.entries(outcomes).map(([outcome, n]) => `${n} ${outcome}`).join(", ");
  return `${amount(due, "turn")} due${became ? `: ${became}` : ""}`;
}
