// The list of recorded turns: search, filter, open.
import { button, el, replace } from "../dom.js";
import { call } from "../api.js";
import { amount, ms, when } from "./format.js";
import { table } from "./table.js";

const FILTERS = ["query", "user", "variant", "rule", "refused", "rated", "marked", "since", "until"];

export async function turnList(query) {
  const given = new URLSearchParams([...query].filter(([name, value]) => FILTERS.includes(name) && value));
  const page = await call("GET", `/v1/demeanor/turns?${given}`);
  const { box, add } = table("Turns", ["When", "User", "Question and answer", "Variant", "What happened"], page.data.map(row), { said: [2] });
  const more = el("div", {});
  const showMore = (next) => replace(more, next !== null && button("More", async () => {
    const further = await call("GET", `/v1/demeanor/turns?${new URLSearchParams([...given, ["before", String(next)]])}`);
    add(further.data.map(row));
    showMore(further.next);
  }, { class: "more" }));
  showMore(page.next);
  return [filters(given, page.variants), page.data.length === 0 ? el("p", { class: "soft" }, "No turn passes these filters.") : box, more];
}

function filters(given, variants) {
  const field = (name, words, input) => {
    input.name = name;
    input.value = given.get(name) ?? "";
    return el("label", {}, words, input);
  };
  const choice = (...options) => el("select", {}, options.map(([value, words]) => el("option", { value }, words)));
  const form = el("form", { class: "filters", role: "search" },
    field("query", "Words or id", el("input", { type: "search", maxlength: "500" })),
    field("user", "User", el("input", { type: "text", maxlength: "256" })),
    field("variant", "Variant", choice(["", "any"], ...variants.map((id) => [id, id]))),
    field("rule", "Rule", el("input", { type: "text", maxlength: "200" })),
    field("refused", "Refused", choice(["", "any"], ["true", "refused"], ["false", "answered"])),
    field("rated", "Feedback", choice(["", "any"], ["down", "bad"], ["up", "good"], ["any", "some"])),
    field("marked", "Marked", choice(["", "any"], ["true", "marked"], ["false", "not marked"])),
    field("since", "From", el("input", { type: "date" })),
    field("until", "Until", el("input", { type: "date" })),
    el("button", { class: "primary" }, "Search"),
    el("a", { href: "/operator/", class: "act" }, "Clear"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = [...new FormData(form)].filter(([, value]) => value);
    location.assign(`/operator/?${new URLSearchParams(chosen)}`);
  });
  return form;
}

function row(turn) {
  const link = el("a", { href: `/operator/?${new URLSearchParams({ turn: turn.id })}`, dir: "auto" }, turn.question || "(no question)");
  return [when(turn.started), el("bdi", {}, turn.user), [link, el("p", { dir: "auto" }, turn.answer)], el("bdi", {}, turn.variant), happened(turn)];
}

function happened(turn) {
  const chip = (words, kind) => el("span", { class: `chip ${kind}` }, words);
  return el("div", { class: "chips" },
    turn.refused_by && chip(`${turn.refused_by}: ${turn.rule}`, "bad"),
    !turn.finish_reason && chip("broke off", "bad"),
    turn.rating !== null && chip(turn.rating > 0 ? "good" : turn.rating < 0 ? "bad" : "neither", turn.rating < 0 ? "bad" : "good"),
    turn.marks > 0 && chip("marked", ""),
    chip(`${ms(turn.ms)}, ${amount(turn.completion_tokens, "token")}`, "quiet"));
}
