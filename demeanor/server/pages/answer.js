// One answer: its card, how it grows while it streams, and how it stands when it is whole.
import { button, el, replace } from "./dom.js";
import { growing } from "./markdown/stream.js";
import { markdown } from "./markdown/render.js";
import { copied } from "./clipboard.js";
import { feedback } from "./feedback.js";
import { plainWords } from "./errors.js";
import { footnote, sourceList, sourcesOf } from "./sources.js";
import { strip } from "./trace.js";
import { isRefused, saidBy } from "./conversation.js";
import { approvalForm, decided, waiting } from "./approvals.js";

export function blankAnswer(model) {
  return { model, id: null, rounds: [], text: "", refusal: null, calls: [], annotations: [], trace: null, usage: null, error: null, stopped: false };
}

// Begin the next round of an answer, after a person has decided on the calls of this one.
export function nextRound(answer, decisions) {
  answer.rounds = [...(answer.rounds ?? []), { text: answer.text, calls: answer.calls, decisions, token: waiting(answer).token }];
  Object.assign(answer, { id: null, text: "", calls: [], annotations: [], trace: null, usage: null, error: null, stopped: false });
}

// Take one chunk of a streamed completion.
export function take(answer, chunk) {
  answer.id = chunk.id;
  const delta = chunk.choices[0]?.delta ?? {};
  if (delta.refusal) answer.refusal = delta.refusal;
  if (delta.content) answer.text += delta.content;
  if (delta.tool_calls) answer.calls.push(...delta.tool_calls);
  if (delta.annotations) answer.annotations = delta.annotations;
  if (chunk.demeanor) answer.trace = chunk.demeanor;
  if (chunk.usage) answer.usage = chunk.usage;
}

// The card of an answer: {card, grow, settle}. `name` is its title, or null; `acts` are {retry, again, follow, details, records}.
export function answerCard(answer, name, acts) {
  const before = answer.rounds?.length ? el("div", { class: "text" }, earlier(answer)) : null;
  const text = el("div", { class: "text" });
  const foot = el("div", { class: "foot" });
  const heading = name === null ? null : el("h3", {}, name);
  const card = el("article", { class: "answer", "aria-label": name ?? "Answer" }, heading, before ?? "", text, foot);
  const view = growing(text, acts.follow);

  let settled = null;

  // Draw the whole answer; while `hidden`, without what would tell which variant wrote it.
  function settle(hidden) {
    if (settled === hidden) return;
    settled = hidden;
    view.stop();
    card.classList.remove("waiting");
    before?.remove();
    replace(text, body(answer));
    const asked = waiting(answer); // also while names are hidden: without the decision there is nothing to vote on
    replace(foot, ending(answer, acts), asked && approvalForm(asked, (decisions) => acts.decide(answer, decisions)), hidden ? null : tools(answer, acts), hidden ? null : strip(answer, acts.details));
  }

  return {
    card,
    grow() {
      settled = null;
      card.classList.add("waiting");
      view.update(answer.refusal !== null && !answer.text ? answer.refusal : answer.text);
    },
    settle,
    rename(words) {
      if (heading) heading.textContent = words;
      card.setAttribute("aria-label", words);
    },
  };
}

function body(answer) {
  if (isRefused(answer)) {
    const withdrawn = answer.text && answer.text !== answer.refusal;
    return [withdrawn && el("p", { class: "withdrawn" }, el("del", {}, answer.text)), el("p", { class: "refusal", dir: "auto" }, answer.refusal)];
  }
  const { notes, spans } = sourcesOf(answer), asked = waiting(answer);
  return [
    ...earlier(answer), ...markdown(answer.text, { spans, footnote: footnote(notes) }), sourceList(notes),
    ...answer.calls.filter(({ id }) => !asked?.calls.some((other) => other.id === id)).map(call),
  ];
}

const earlier = (answer) => (answer.rounds ?? []).flatMap((round) => [...markdown(round.text), ...decided({ calls: round.calls.map((c) => ({ id: c.id, ...c.function })), decisions: round.decisions })]);

function call({ function: { name, arguments: given } }) {
  return el("p", { class: "call" }, "The model asks for the tool ", el("b", {}, name), el("code", { class: "inline" }, given));
}

function ending(answer, acts) {
  const length = answer.trace?.events.findLast((event) => event.kind === "done")?.finish_reason === "length";
  return [
    answer.stopped && el("p", { class: "note" }, answer.text ? "Stopped." : "Stopped before an answer came."),
    length && el("p", { class: "note" }, "The answer reached its length limit. ", acts.more && button("Continue", acts.more, { class: "act", title: "Ask the assistant to go on where it stopped" })),
    answer.error && problem(answer.error, acts),
  ].filter(Boolean);
}

function problem(error, acts) {
  const { title, advice, detail } = plainWords(error);
  return el("div", { class: "problem", role: "alert" }, el("b", {}, title), advice && ` ${advice}`, detail && el("small", {}, detail),
    el("div", {}, button("Try again", acts.retry, { class: "retry" })));
}

function tools(answer, acts) {
  if (answer.error && !answer.text) return null;
  const said = answer.refusal ?? saidBy(answer);
  const copy = button("Copy", () => copied(copy, () => said), { class: "act", "aria-label": "Copy the answer" });
  return el("div", { class: "acts" },
    said && copy,
    button("Regenerate", acts.again, { class: "act", title: "Ask again; this answer stays reachable" }),
    answer.trace && feedback(answer, acts.opine));
}
