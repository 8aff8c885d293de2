// What the rules did: hits by rule, stage and outcome, what people said of them, and what other thresholds would keep.
import { el } from "../dom.js";
import { call } from "../api.js";
import { curveChart } from "./chart.js";
import { amount, number, share } from "./format.js";
import { table } from "./table.js";

export async function policyPage(query) {
  const since = query.get("since");
  const report = await call("GET", `/v1/demeanor/policy${since ? `?${new URLSearchParams({ since })}` : ""}`);
  const link = (hit, more) => `/operator/?${new URLSearchParams({ rule: hit.rule, ...more })}`;
  const head = ["Rule", "Stage", "Outcome", "Turns", "Share of turns", "Marked right", "Marked wrong", "Wrong among marked (95%)"];
  return [
    period(since),
    el("p", { class: "soft" }, `${amount(report.turns, "recorded turn")}. ${amount(report.misses, "turn")} marked as missed by the policy.`),
    report.hits.length === 0 ? el("p", {}, "No rule acted on a recorded turn.") : table("Hits", head, report.hits.map((hit) => [
      el("a", { href: link(hit) }, hit.rule), hit.stage.replaceAll("_", " "), hit.outcome.replaceAll("_", " "), String(hit.turns), report.turns ? `${(100 * hit.turns / report.turns).toFixed(1)}%` : "–",
      String(hit.true_positives), String(hit.false_positives), share(hit.false_share)]), { numeric: [3, 4, 5, 6, 7] }).box,
    el("p", { class: "soft" }, "Open the turns of a rule and mark what it did: the last columns count your marks. Marked turns are not a random sample unless you drew them at random."),
    ...Object.entries(report.curves).map(([rule, points]) => threshold(rule, points)),
  ];
}

function period(since) {
  const box = el("input", { type: "date", name: "since", value: since ?? "" });
  const form = el("form", { class: "filters" }, el("label", {}, "From", box), el("button", { class: "primary" }, "Show"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.assign(box.value ? `/operator/policy?${new URLSearchParams({ since: box.value })}` : "/operator/policy");
  });
  return form;
}

function threshold(rule, points) {
  const head = ["Threshold", "Hits", "Marked right", "Marked wrong", "Wrong among marked (95%)"];
  return el("section", { "aria-label": `Thresholds of ${rule}` }, el("h2", {}, `Thresholds of ${rule}`),
    el("p", { class: "soft" }, "How many of the recorded hits a higher threshold would keep. What a lower one would add is not recorded: demeanor policy test measures that on labelled sets."),
    curveChart(points, `Hits of ${rule} by threshold`),
    el("details", {}, el("summary", {}, "As a table"), table("Thresholds", head, points.map((p) => [number(p.threshold), String(p.hits), String(p.true_positives), String(p.false_positives), share(p.false_share)]), { numeric: [1, 2, 3, 4] }).box));
}
