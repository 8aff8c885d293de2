// What changed from one text to another, word by word; lines where the texts are long.
import { el } from "../dom.js";

const MAX_CELLS = 4_000_000;

export function changes(before, after) {
  for (const cut of [/(\s+)/, /(\n)/]) {
    const a = before.split(cut), b = after.split(cut);
    if (a.length * b.length <= MAX_CELLS) return merged(a, b);
  }
  return [el("del", {}, before), el("ins", {}, after)];
}

function merged(a, b) {
  const width = b.length + 1, longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1 : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const parts = [];
  const add = (kind, text) => {
    if (parts.at(-1)?.[0] === kind) parts.at(-1)[1] += text;
    else parts.push([kind, text]);
  };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add("same", a[i]); i += 1; j += 1; }
    else if (j >= b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) { add("del", a[i]); i += 1; }
    else { add("ins", b[j]); j += 1; }
  }
  return parts.map(([kind, text]) => (kind === "same" ? document.createTextNode(text) : el(kind, {}, text)));
}
