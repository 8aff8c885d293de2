// Feedback under an answer: two thumbs and, once one is pressed, reasons, words and a corrected answer; sent to /v1/feedback.
import { button, el } from "./dom.js";

const SCORES = [[1, "Good answer"], [-1, "Bad answer"]];
const REASONS = {
  1: [["correct", "Correct"], ["clear", "Clear"], ["complete", "Complete"], ["right_tone", "Right tone"]],
  "-1": [["wrong", "Not true"], ["ignored_instructions", "Did not do as asked"], ["wrong_source", "Wrong source"], ["refused_wrongly", "Refused without need"],
    ["harmful", "Harmful"], ["too_long", "Too long"], ["bad_style", "Bad style"]],
};

// `post` sends {id, score, reasons?, comment?, corrected?} and throws what the server says against it.
export function feedback(answer, post) {
  const said = el("span", { class: "thanks", role: "status" });
  const form = el("form", { class: "opinion", hidden: true });
  const state = { score: 0 };

  async function give(score, more) {
    try {
      await post({ id: answer.id, score, ...more });
      state.score = score;
      said.textContent = more ? "Kept. Thank you." : "";
      form.hidden = Boolean(more) || score === 0;
      if (!form.hidden) fill(form, score, answer, (given) => give(score, given));
    } catch (error) {
      said.textContent = error.code === "no_record_layer" ? "This stack keeps no turns, so no opinions." : error.message;
    }
    for (const [i, [value]] of SCORES.entries()) thumbs[i].setAttribute("aria-pressed", String(state.score === value));
  }

  const thumbs = SCORES.map(([score, name]) => {
    const made = button("", () => give(state.score === score ? 0 : score), { class: score < 0 ? "thumb down" : "thumb", title: name, "aria-label": name, "aria-pressed": "false" });
    made.append(document.getElementById("thumb").content.cloneNode(true));
    return made;
  });
  return el("div", { class: "thumbs" }, thumbs, said, form);
}

function fill(form, score, answer, send) {
  const chosen = new Set();
  const chips = REASONS[score].map(([reason, words]) => button(words, (event) => {
    const on = !chosen.has(reason);
    if (on) chosen.add(reason);
    else chosen.delete(reason);
    event.currentTarget.setAttribute("aria-pressed", String(on));
  }, { class: "reason", "aria-pressed": "false" }));
  const comment = el("input", { type: "text", maxlength: "2000", placeholder: score > 0 ? "What was good?" : "What was wrong?", "aria-label": "Comment" });
  const corrected = el("textarea", { rows: "4", maxlength: "20000", "aria-label": "Corrected answer", hidden: true });
  const better = button("Write a better answer", () => {
    corrected.value ||= answer.text;
    corrected.hidden = false;
    better.hidden = true;
    corrected.focus();
  }, { class: "act" });
  form.replaceChildren(el("div", { class: "reasons", role: "group", "aria-label": "Reasons" }, chips), comment, corrected,
    el("div", { class: "row" }, el("button", { class: "primary" }, "Send"), score < 0 ? better : "", button("Close", () => { form.hidden = true; }, { class: "act" })));
  form.onsubmit = (event) => {
    event.preventDefault();
    const words = comment.value.trim(), text = corrected.hidden ? "" : corrected.value.trim();
    if (!words && !text && !chosen.size) return comment.focus();
    return send({ ...(chosen.size ? { reasons: [...chosen] } : {}), ...(words ? { comment: words } : {}), ...(text && text !== answer.text ? { corrected: text } : {}) });
  };
}
