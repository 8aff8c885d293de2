// One turn on the page: the question with its files and versions, the answers beside each other, and a vote where there are two.
import { button, el, plural, replace, scrolled } from "./dom.js";
import { answerCard } from "./answer.js";
import { copied } from "./clipboard.js";
import { isRefused } from "./conversation.js";
import { voteBar } from "./vote.js";

// The section of a turn: {section, cards, refresh}. `acts`: {label, edit, again, retry, version, opine, compare, follow, details}.
export function turnView(turn, acts) {
  const asked = el("div", { class: "asked" });
  const cards = [], answers = el("div", { class: "answers" });
  const vote = el("div", {});
  const section = el("section", { class: "turn", "aria-label": `Turn ${turn.number + 1}` }, el("h2", { class: "hidden" }, `Turn ${turn.number + 1}`), asked, answers, vote);

  function name(answer, i) {
    if (turn.answers.length < 2) return null;
    return isBlind(turn) ? `Answer ${"AB"[i]}` : acts.label(answer.model);
  }

  // Make the cards anew, as the turn has answers now.
  function show() {
    cards.splice(0, cards.length, ...turn.answers.map((answer, i) => answerCard(answer, name(answer, i), {
      ...acts, retry: () => acts.retry(turn), again: () => acts.again(turn), more: () => acts.more(turn), decide: (answer, decisions) => acts.decide(turn, answer, decisions),
    })));
    answers.className = `answers of${turn.answers.length}`;
    replace(answers, cards.map(({ card }) => card));
  }

  function refresh(versions) {
    drawQuestion(asked, turn, versions, acts);
    for (const [i, answer] of turn.answers.entries()) {
      cards[i].rename(name(answer, i) ?? "Answer");
      if (!acts.runs(turn)) cards[i].settle(isBlind(turn));
    }
    section.classList.toggle("refused", turn.answers.length > 0 && turn.answers.every(isRefused));
    replace(vote, turn.answers.length === 2 && !acts.runs(turn) && turn.answers.every((a) => a.id && a.text && !a.error && !a.stopped) && voteBar(turn, acts));
  }

  show();
  return { section, cards, show, refresh };
}

export const isBlind = (turn) => turn.blind && !turn.vote;

function drawQuestion(asked, turn, versions, acts) {
  const copy = button("Copy", () => copied(copy, () => turn.question), { class: "act", "aria-label": "Copy the question" });
  const edit = button("Edit", () => editing(asked, turn, versions, acts), { class: "act", title: "Ask it differently; this version stays reachable" });
  replace(asked,
    turn.files.length > 0 && el("ul", { class: "files" }, turn.files.map(({ name, text }) => el("li", {}, el("bdi", {}, name), ` ${plural(text.length, "character")}`))),
    turn.question && el("p", { class: "question", dir: "auto", tabindex: scrolled(turn.question) }, turn.question),
    fault(turn),
    el("div", { class: "acts" }, versions.length > 1 && switcher(turn, versions, acts), copy, edit));
}

// Which message was at fault, and what follows from it.
function fault(turn) {
  if (turn.fault) return el("p", { class: "fault" }, "The server could not take this message: ", turn.fault);
  const refused = turn.answers.filter(isRefused);
  if (!refused.length) return null;
  const rules = refused.flatMap((answer) => (answer.trace?.events ?? []).filter((event) => event.kind === "refusal"));
  const input = rules.some((event) => event.stage === "input");
  const which = rules.length === 0 ? "This was refused" : input ? "This message was refused" : "The answer to this message was withheld";
  const all = refused.length === turn.answers.length;
  return el("p", { class: "fault" }, `${which}${rules[0] ? ` by the rule ${rules[0].rule}` : ""}. `, all ? "It is left out of what is sent on." : "It is left out of what that variant is sent.");
}

function switcher(turn, versions, acts) {
  const at = versions.indexOf(turn);
  const to = (step, words) => button(step < 0 ? "‹" : "›", () => acts.version(versions[at + step]), { "aria-label": words, disabled: !versions[at + step] });
  return el("span", { class: "versions", role: "group", "aria-label": "Versions" }, to(-1, "Earlier version"), `${at + 1}/${versions.length}`, to(1, "Later version"));
}

function editing(asked, turn, versions, acts) {
  const box = el("textarea", { rows: String(Math.min(12, turn.question.split("\n").length + 1)), "aria-label": "Edit the question" });
  box.value = turn.question;
  const back = () => {
    drawQuestion(asked, turn, versions, acts);
    asked.querySelector(".acts button:last-child")?.focus();
  };
  const form = el("form", { class: "editing" }, box, el("div", { class: "row" }, el("button", { class: "primary" }, "Ask"), button("Cancel", back, { class: "act" })));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim() || turn.files.length) acts.edit(turn, box.value);
  });
  box.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") { event.stopPropagation(); back(); }
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
  });
  replace(asked, form);
  box.focus();
}
