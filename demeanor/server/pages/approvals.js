// Tool calls that wait for a person: each is shown with its arguments and allowed or denied; then the answer goes on.
import { el } from "./dom.js";

export const waiting = (answer) => (answer.trace?.approvals ?? [])[0] ?? null;

// What was decided in earlier rounds of an answer.
export function decided({ calls, decisions }) {
  return decisions.map(({ call_id: id, approve, reason }) => {
    const call = calls.find((other) => other.id === id);
    return el("p", { class: approve ? "decided" : "decided denied" }, approve ? "You allowed " : "You denied ", el("b", {}, call?.name), " ", el("code", { class: "inline" }, call?.arguments),
      reason && el("span", { dir: "auto" }, ` (${reason})`));
  });
}

// The form that asks; `decide` gets the decisions as the API takes them.
export function approvalForm({ calls, expires_at: expires }, decide) {
  const fields = calls.map(({ id, name, arguments: given, reason }, i) => {
    const choice = (value, words) => el("label", {}, el("input", { type: "radio", name: `call-${i}`, value, required: true }), ` ${words}`);
    const why = el("input", { type: "text", maxlength: "1000", placeholder: "Why not? The model reads it.", "aria-label": `Why ${name} may not run`, hidden: true });
    const field = el("fieldset", {}, el("legend", {}, "May the assistant run ", el("b", {}, name), "?"),
      el("pre", { tabindex: "0", "aria-label": "Arguments" }, pretty(given)), reason && el("p", { class: "soft" }, reason), el("div", { class: "row" }, choice("yes", "Allow"), choice("no", "Deny"), why));
    field.addEventListener("change", () => { why.hidden = field.querySelector("input:checked")?.value !== "no"; });
    return { id, field, why };
  });
  const form = el("form", { class: "approval" }, fields.map(({ field }) => field),
    el("div", { class: "row" }, el("button", { class: "primary" }, "Go on"), el("span", { class: "soft" }, `Can be decided until ${new Date(1000 * expires).toLocaleTimeString()}.`)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    decide(fields.map(({ id, field, why }) => {
      const approve = field.querySelector("input:checked").value === "yes";
      return { call_id: id, approve, ...(!approve && why.value.trim() ? { reason: why.value.trim() } : {}) };
    }));
  });
  return form;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
