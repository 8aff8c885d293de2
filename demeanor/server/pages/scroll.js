// The page follows an answer that grows as long as its end is in view.
import { $ } from "./dom.js";

const NEAR = 80;

export function toBottom() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

export function follow(change) {
  const box = $("scroll");
  const near = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
  change();
  if (near) toBottom();
}
