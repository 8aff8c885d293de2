// The box at the foot of the page: it grows with its text, sends with Enter, and tells what state it is in.
import { $ } from "./dom.js";

const MAX_PIXELS = 240;

export function grow() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, MAX_PIXELS)}px`;
}

export function write(text) {
  $("message").value = text;
  grow();
}

export function focusBox() {
  if (!document.querySelector("dialog[open]")) $("message").focus({ preventScroll: true });
}

// `acts`: {submit, stop, running, last}.
export function composer(acts) {
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); acts.submit(); });
  $("message").addEventListener("input", grow);
  $("message").addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      if (!acts.running()) acts.submit();
    }
    if (event.key === "ArrowUp" && !event.target.value && acts.last()) {
      event.preventDefault();
      write(acts.last());
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) acts.stop();
    if (event.key === "/" && !event.target.closest("input, textarea, select, dialog")) { event.preventDefault(); $("message").focus(); }
  });
}
