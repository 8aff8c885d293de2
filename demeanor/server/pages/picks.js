// Which variants answer: one, or two side by side, and then perhaps blind.
import { $, el, replace } from "./dom.js";

export function label(name, id) {
  if (id === name) return `${id} (every layer)`;
  if (id.startsWith(`${name}:`)) return id.slice(name.length + 1).replaceAll("+", " + ");
  if (id.startsWith(`${name}-`)) return `without ${id.slice(name.length + 1).replaceAll("-", ", ")}`;
  return id;
}

function options(name, models, chosen) {
  const group = (title, fits) => {
    const members = models.filter((m) => fits(m.id));
    return members.length > 0 && el("optgroup", { label: title }, members.map((m) =>
      el("option", { value: m.id, title: m.demeanor.description, selected: m.id === chosen }, label(name, m.id))));
  };
  const alone = (id) => id.startsWith(`${name}:`), without = (id) => id.startsWith(`${name}-`);
  return [group("The stack", (id) => !alone(id) && !without(id)), group("Only these layers", alone), group("All but", without)];
}

// Fill the two lists; `wanted` are ids that a link names, listed or not.
export function fillPicks(name, listed, wanted) {
  const ids = listed.map((m) => m.id);
  const models = [...listed, ...wanted.filter((id) => !ids.includes(id)).map((id) => ({ id, demeanor: { description: "" } }))];
  replace($("first"), options(name, models, wanted[0] ?? name));
  replace($("second"), el("option", { value: "" }, "one answer"), options(name, models, wanted[1]));
  showPicks();
}

export const picked = () => [$("first").value, $("second").value].filter(Boolean);

// Two different variants whose names are hidden until the vote.
export const isBlindChosen = () => $("blind").checked && picked().length === 2;

export function showPicks() {
  const two = Boolean($("second").value);
  $("blind").closest("label").hidden = !two;
  document.body.classList.toggle("two", two);
}
