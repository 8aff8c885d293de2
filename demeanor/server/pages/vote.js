// The vote under two answers: which is better. Names stay hidden until it where the comparison is blind.
import { button, el } from "./dom.js";

const CHOICES = [["first", "A is better", "The left one is better"], ["second", "B is better", "The right one is better"], ["tie", "Equally good", "Equally good"], ["both_bad", "Both bad", "Both bad"]];

export function voteBar(turn, acts) {
  if (turn.vote) {
    const [, words] = CHOICES.find(([choice]) => choice === turn.vote);
    const names = turn.answers.map((answer, i) => `${"AB"[i]} is ${acts.label(answer.model)}`).join(", ");
    return el("p", { class: "voted", role: "status" }, `Your vote: ${words}. ${turn.blind ? `${names}.` : ""}`);
  }
  const said = el("span", { class: "thanks", role: "status" });
  const cast = async (choice) => {
    const [first, second] = turn.answers;
    try {
      await acts.compare({ first: first.id, second: second.id, verdict: choice, blind: turn.blind });
      acts.voted(turn, choice);
    } catch (error) {
      if (error.code === "no_record_layer" && turn.blind) acts.voted(turn, choice); // nothing is kept, yet the names may be told
      said.textContent = error.code === "no_record_layer" ? "This stack keeps no turns, so no votes." : error.message;
    }
  };
  return el("div", { class: "vote", role: "group", "aria-label": "Which answer is better?" },
    CHOICES.map(([choice, blind, open]) => button(turn.blind ? blind : open, () => cast(choice))), said);
}
