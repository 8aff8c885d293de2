// Ways to make page content; strings always become text nodes.

export const $ = (id) => document.getElementById(id);

export function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) if (child !== false && child != null && child !== 0) made.append(child);
  return made;
}

// A button that does `act` when it is pressed.
export function button(words, act, attributes) {
  const made = el("button", { type: "button", ...attributes }, words);
  made.addEventListener("click", act);
  return made;
}

export function replace(parent, ...children) {
  const kept = document.createDocumentFragment();
  for (const child of children.flat(Infinity)) if (child) kept.append(child);
  parent.replaceChildren(kept);
}

export const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

// The tabindex of a text that may need scrolling, so that the keyboard reaches it.
export const scrolled = (text) => (text?.length > 300 || text?.split("\n", 9).length > 8 ? "0" : null);
