// Copying text, also on pages without https, where browsers offer no clipboard.
import { el } from "./dom.js";

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const held = el("textarea", { class: "hidden", readonly: true, "aria-hidden": "true" });
  held.value = text;
  document.body.append(held);
  held.select();
  const done = document.execCommand("copy");
  held.remove();
  if (!done) throw new Error("This browser did not copy it.");
}

// Copy what `text` gives and say so on the button for a moment.
export async function copied(button, text) {
  const before = button.dataset.words ??= button.textContent;
  try {
    await copy(text());
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied";
  }
  setTimeout(() => { button.textContent = before; }, 1200);
}
