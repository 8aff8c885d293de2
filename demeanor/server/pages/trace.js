// What every layer did to an answer: built from the `demeanor` object of the response.
// Offsets count code points, so texts are cut as arrays of characters.
import { el, plural, scrolled } from "./dom.js";
import { highlighted } from "./sources.js";

const chars = (text) => Array.from(text);
const of = (answer, kind) => (answer.trace?.events ?? []).filter((event) => event.kind === kind);

// ---- the strip ----

export function strip(answer, open) {
  if (!answer.trace) return null;
  const { ms, stack_key: key } = answer.trace;
  const numbers = [answer.usage && plural(answer.usage.completion_tokens, "token"), answer.usage?.cost_usd != null && cost(answer.usage), `${Math.round(ms)} ms`, key.slice(0, 8)].filter(Boolean).join(" · ");
  return el("details", { class: "strip", open },
    el("summary", {}, el("span", { class: "chips" }, ...chips(answer)), el("span", { class: "numbers" }, numbers)),
    el("ol", { class: "steps" }, ...steps(answer)),
    clock(answer),
    el("dl", { class: "identity" }, ...pair("variant", answer.trace.model), ...pair("stack", key), answer.trace.layers.length > 0 && pair("layers", answer.trace.layers.join(" → ")),
      answer.trace.experiment && pair("experiment", experimentOf(answer.trace.experiment)),
      answer.usage && pair("tokens", `${answer.usage.prompt_tokens} read, ${answer.usage.completion_tokens} written`),
      answer.usage?.cost_usd !== undefined && pair("cost", cost(answer.usage))));
}

// What an answer cost, where the operator has set prices; a model without a price costs an unknown amount, not nothing.
const cost = ({ cost_usd: usd }) => (usd === null ? "unknown: a model has no price" : `${usd === 0 ? "0" : usd < 0.01 ? usd.toPrecision(2) : usd.toFixed(4)} USD`);

const experimentOf = (found) => (typeof found === "string" ? found : `${found.name}/${found.arm}`);
const pair = (name, value) => [el("dt", {}, name), el("dd", {}, value)];

function chips(answer) {
  const chip = (text, kind) => el("span", { class: `chip ${kind ?? ""}` }, text);
  const made = of(answer, "refusal").map((event) => chip(`${event.by} refused`, "bad"));
  for (const event of of(answer, "prompted")) made.push(chip(event.by));
  const passages = of(answer, "passage").length, citations = of(answer, "citation").length;
  if (passages) made.push(chip(`${plural(passages, "passage")}${citations ? `, ${citations} cited` : ""}`));
  for (const event of of(answer, "tool_call")) made.push(chip(event.name));
  if (of(answer, "tool_result").some((event) => event.error)) made.push(chip("tool failed", "bad"));
  if (!made.length) made.push(chip("weights only", "quiet"));
  return made;
}

function steps(answer) {
  const rows = [];
  for (const event of answer.trace.events) {
    const row = step(event, answer);
    if (row) rows.push(el("li", {}, el("span", { class: "by" }, event.by), el("div", { class: "did" }, ...row)));
  }
  return rows;
}

function step(event, answer) {
  const verb = (text, ...more) => el("p", { class: "verb" }, text, ...more);
  switch (event.kind) {
    case "prompted":
      return [verb(event.messages ? `put ${plural(event.messages.length, "message")} before the conversation` : "put messages before the conversation, which this server does not show"),
        ...(event.messages ?? []).map((m) => el("blockquote", { tabindex: scrolled(m.content) }, el("b", {}, m.role), m.content))];
    case "passage":
      return passage(event, answer);
    case "tool_call":
      return [verb("called ", el("b", {}, event.name)), event.arguments !== undefined && el("code", { tabindex: scrolled(event.arguments) }, event.arguments)];
    case "tool_result":
      return [verb(event.error ? "failed at " : "ran ", el("b", {}, event.name)), event.content !== undefined && el("code", { class: event.error ? "bad" : "", tabindex: scrolled(event.content) }, event.content)];
    case "tool_decision":
      return DECISIONS[event.verdict] ? [verb(DECISIONS[event.verdict], el("b", {}, event.tools.join(", "))), event.detail && el("p", {}, event.detail)] : null;
    case "unsupported":
      return [verb("took out a citation that was not true: ", el("b", {}, event.reason.replaceAll("_", " ")))];
    case "upstream":
      return [verb("answered by ", el("b", {}, event.name)), event.failed.length > 0 && el("p", {}, `after ${event.failed.map((f) => `${f.name} (${f.status})`).join(", ")} failed`)];
    case "refusal":
      return [verb(event.stage === "input" ? "refused the question: " : event.stage === "output" ? "withheld the answer: " : `ended the turn (${event.stage.replace("_", " ")}): `, el("b", {}, event.rule)), el("p", {}, event.reason)];
    case "rule_hit":
      if (event.outcome === "blocked") return null; // the refusal says it
      return [verb(`${event.outcome.replaceAll("_", " ")} at ${event.stage.replaceAll("_", " ")}: `, el("b", {}, event.rule), event.score !== undefined && el("small", {}, ` score ${event.score}`)), event.reason && el("p", {}, event.reason)];
    case "left_out":
      return [verb("kept an earlier refused turn from the model: ", el("b", {}, event.rule)), el("p", {}, event.reason)];
    case "text": {
      const text = chars(answer.text).slice(event.start, event.end).join("");
      return text.trim() ? [verb(`wrote ${plural(event.end - event.start, "character")}`), el("blockquote", { tabindex: scrolled(text) }, text)] : null;
    }
    default:
      return null;
  }
}

const DECISIONS = {
  withheld: "withheld ", searched: "found by search ", waiting: "waits for a person to allow ", approved: "was allowed to run ", denied: "was not allowed to run ",
  malformed: "could not read the call of ", timed_out: "ran out of time at ", budget_spent: "had no budget left for ",
};

function passage(event, answer) {
  const number = of(answer, "passage").findIndex((p) => p.id === event.id) + 1;
  const spans = of(answer, "citation").filter((c) => c.passage_id === event.id);
  const quotes = spans.map((c) => chars(answer.text).slice(c.start, c.end).join("").replace(/[\s.,;:!?]+$/, ""));
  return [
    el("p", { class: "verb" }, el("sup", {}, String(number)), ` ${event.source} `, el("small", {}, `score ${event.score?.toFixed(2)}${spans.length ? ", cited" : ""}`)),
    event.text !== undefined && el("blockquote", { class: spans.length ? "cited" : "", tabindex: scrolled(event.text) }, ...highlighted(event.text, quotes)),
  ];
}

function clock(answer) {
  const spent = new Map();
  for (const { by, ms } of of(answer, "timing")) spent.set(by, (spent.get(by) ?? 0) + ms);
  if (!spent.size) return null;
  const most = Math.max(...spent.values());
  const rows = [...spent].sort((a, b) => b[1] - a[1]).map(([by, ms]) => {
    const bar = el("i", {});
    bar.style.width = `${Math.max(1, 100 * ms / most)}%`;
    return [el("span", {}, by), el("span", { class: "bar" }, bar), el("span", { class: "ms" }, `${ms < 10 ? ms.toFixed(2) : Math.round(ms)} ms`)];
  });
  return el("div", { class: "clock", "aria-label": "Milliseconds per layer" }, ...rows.flat());
}
