// One recorded turn: the conversation, the answer, every layer's events, feedback, votes, marks, and other answers to it.
import { button, el, replace } from "../dom.js";
import { call } from "../api.js";
import { markdown } from "../markdown/render.js";
import { footnote, sourceList, sourcesOf } from "../sources.js";
import { strip } from "../trace.js";
import { changes } from "./diff.js";
import { ms, number, when } from "./format.js";

const MARKS = [["true_positive", "Rightly"], ["false_positive", "Wrongly (false positive)"]];
const MISSES = [["false_negative", "The policy missed something here"], ["true_negative", "Rightly let through"]];

export async function turnPage(query) {
  const id = query.get("turn"), path = `/v1/demeanor/turns/${encodeURIComponent(id)}`;
  const [found, { data: models }] = await Promise.all([call("GET", path), call("GET", "/v1/models").catch(() => ({ data: [] }))]);
  const { turn } = found;
  const answer = { text: found.text, trace: { events: found.events, ms: turn.ms, stack_key: turn.stack_key, model: turn.variant, layers: [] }, annotations: [], usage: turn };
  const { notes, spans } = sourcesOf(answer);
  return [
    el("p", { class: "soft" }, when(turn.started), " · ", el("bdi", {}, turn.user), " · ", el("bdi", {}, turn.variant), ` · ${turn.stack_key.slice(0, 12)} · ${ms(turn.ms)} · temperature ${number(turn.decoding.temperature)} · `, el("code", { class: "inline" }, turn.id)),
    section("Conversation", el("ol", { class: "messages" }, found.messages.map(message))),
    section("Answer",
      turn.refused_by && el("p", { class: "fault" }, `Refused by ${turn.refused_by}: ${turn.rule}`),
      el("div", { class: "text" }, turn.refused_by ? el("p", { dir: "auto" }, turn.answer) : [...markdown(found.text, { spans, footnote: footnote(notes) }), sourceList(notes) ?? ""]),
      strip(answer, true)),
    section("Marks", marks(found, path)),
    section("Feedback and votes", feedback(found)),
    section("Answer it again", replay(found, path, models)),
  ];
}

const section = (title, ...children) => el("section", { "aria-label": title }, el("h2", {}, title), children);

function message({ role, content, tool_calls: calls }) {
  return el("li", {}, el("b", {}, role), el("blockquote", { dir: "auto", tabindex: "0" }, content),
    (calls ?? []).map((c) => el("p", {}, `calls ${c.function.name} `, el("code", { class: "inline" }, c.function.arguments))));
}

// For each rule that did something, and for the whole policy, what a person says about it.
function marks(found, path) {
  const rules = [...new Set(found.events.filter((e) => ["rule_hit", "refusal", "left_out"].includes(e.kind)).map((e) => e.rule))];
  const box = el("div", { class: "marks" });
  const note = el("input", { type: "text", maxlength: "2000", placeholder: "Note (optional), before you mark", "aria-label": "Note" });
  const said = el("span", { class: "soft", role: "status" });

  async function put(rule, mark) {
    try {
      const { data } = await call("POST", `${path}/marks`, { rule, mark, ...(note.value ? { note: note.value } : {}) });
      said.textContent = mark ? "Marked." : "Mark taken back.";
      show(data);
    } catch (error) {
      said.textContent = error.message;
    }
  }

  function row(rule, words, choices, kept) {
    const set = kept.find((m) => m.rule === rule);
    return el("div", { class: "row" }, el("span", {}, words), choices.map(([mark, name]) =>
      button(name, () => put(rule, set?.mark === mark ? null : mark), { class: "reason", "aria-pressed": String(set?.mark === mark) })),
      set && el("span", { class: "soft" }, `${set.user}, ${when(set.created)}`, set.note && el("bdi", {}, `: ${set.note}`)));
  }

  function show(kept) {
    replace(box, rules.map((rule) => row(rule, el("span", {}, "The rule ", el("b", {}, rule), " acted:"), MARKS, kept)), row("", "The whole policy:", MISSES, kept), note, said);
  }

  show(found.marks);
  return box;
}

function feedback({ feedback: opinions, comparisons, scores, turn }) {
  const rows = [
    ...opinions.map((f) => el("li", {}, el("b", {}, f.score > 0 ? "Good" : f.score < 0 ? "Bad" : "Neither"), ` by `, el("bdi", {}, f.user), `, ${when(f.created)}`,
      f.reasons.length > 0 && `, ${f.reasons.join(", ").replaceAll("_", " ")}`, f.comment && el("blockquote", { dir: "auto" }, f.comment),
      f.corrected && el("details", {}, el("summary", {}, "Corrected answer"), el("blockquote", { dir: "auto" }, ...changes(turn.answer, f.corrected))))),
    ...comparisons.map((c) => el("li", {}, vote(c, turn.id), c.comment && el("blockquote", { dir: "auto" }, c.comment))),
    ...scores.map((s) => el("li", {}, `${s.kind} `, el("b", {}, s.name), `: ${s.state}`, s.value !== null && `, score ${number(s.value)}`, s.explanation && el("blockquote", { dir: "auto" }, s.explanation), s.answer && el("details", {}, el("summary", {}, "Its answer"), el("blockquote", { dir: "auto" }, ...changes(turn.answer, s.answer))))),
  ];
  return rows.length ? el("ul", { class: "opinions" }, rows) : el("p", { class: "soft" }, "None yet.");
}

function vote({ first, second, verdict, blind, user, created }, id) {
  const other = first === id ? second : first;
  const words = verdict === "tie" ? "Equally good as" : verdict === "both_bad" ? "As bad as" : (verdict === "first") === (first === id) ? "Better than" : "Worse than";
  return [el("b", {}, words), " ", el("a", { href: `/operator/?${new URLSearchParams({ turn: other })}` }, other), ` (${blind ? "blind, " : ""}`, el("bdi", {}, user), `, ${when(created)})`];
}

function replay(found, path, models) {
  const pick = el("input", { type: "text", list: "models", value: found.turn.variant, maxlength: "512", "aria-label": "Variant" });
  const list = el("datalist", { id: "models" }, models.map((m) => el("option", { value: m.id })));
  const out = el("div", { role: "status" });
  const go = el("button", { class: "primary" }, "Answer again");
  const form = el("form", { class: "row" }, pick, list, go);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    replace(out, el("p", { class: "soft" }, "The variant answers ..."));
    try {
      const made = await call("POST", `${path}/replay`, { model: pick.value });
      const same = made.text === found.turn.answer;
      replace(out, el("p", { class: "soft" }, `${made.model} · ${made.stack_key.slice(0, 12)} · ${ms(made.ms)} · ${made.completion_tokens} tokens`, made.refused && ` · refused by ${made.refused}`),
        el("p", {}, same ? "The same answer." : "What differs from the recorded answer:"), !same && el("blockquote", { dir: "auto", tabindex: "0", class: "diff" }, ...changes(found.turn.answer, made.text)));
    } catch (error) {
      replace(out, el("p", { class: "fault" }, error.message));
    }
    go.disabled = false;
  });
  return [el("p", { class: "soft" }, "The same conversation through another variant of the stack: nothing is recorded, tools have no effects, and the answer is shown as the served policy would show it."), form, out];
}
