// Citations through Markdown: their spans become marks in the text (three noncharacters of Unicode), which the renderer turns into <mark> and a footnote.
// Offsets count code points of the answer as it was sent.
import { el } from "../dom.js";

const START = "\uFDD0", END = "\uFDD1", STOP = "\uFDD2";
const PREFIX = /^(?:[ \t]*(?:[-*+]|\d{1,9}[.)]|#{1,6}|>|\|)(?=[ \t]|$))*[ \t]*/;
const FENCED = /^ {0,3}(?:`{3,}|~{3,})/;

export const unmarked = (text) => text.replace(/[\uFDD0-\uFDD2]/g, "\uFFFD");

// `spans` are {start, end, note}, in order and apart; the text with their marks.
export function withMarks(text, spans) {
  const clean = unmarked(text);
  if (!spans.length) return clean;
  const units = offsets(clean, spans.flatMap(({ start, end }) => [start, end]));
  let made = "", at = 0;
  for (const { start, end, note } of spans) {
    const from = Math.max(at, afterPrefix(clean, units.get(start)));
    const to = beforeFence(clean, units.get(start), units.get(end));
    if (to <= from) continue;
    made += `${clean.slice(at, from)}${START}${clean.slice(from, to)}${END}${note}${STOP}`;
    at = to;
  }
  return made + clean.slice(at);
}

function offsets(text, wanted) {
  const found = new Map();
  let units = 0, points = 0;
  for (const point of [...new Set(wanted)].sort((a, b) => a - b)) {
    for (; points < point && units < text.length; points += 1) units += text.codePointAt(units) > 0xffff ? 2 : 1;
    found.set(point, units);
  }
  return found;
}

function afterPrefix(text, at) {
  const line = text.lastIndexOf("\n", at - 1) + 1;
  const rest = text.slice(line, line + 200).split("\n")[0];
  if (FENCED.test(rest)) return line + text.slice(line).indexOf("\n") + 1;
  return text.slice(line, at).trim() && at >= line + PREFIX.exec(rest)[0].length ? at : line + PREFIX.exec(rest)[0].length;
}

function beforeFence(text, from, to) {
  let end = to;
  while (end > from && /\s/.test(text[end - 1])) end -= 1;
  const line = text.lastIndexOf("\n", end - 1) + 1;
  return FENCED.test(text.slice(line, line + 200)) ? line - 1 : end;
}

// Which part of the text is cited while it is rendered from its first character to its last. `footnote` makes the node of a note.
export class Marks {
  constructor(footnote) {
    Object.assign(this, { footnote, on: false, notes: [] });
  }

  text(text) {
    return this.on ? el("mark", {}, text) : document.createTextNode(text);
  }

  node(node) {
    return this.on ? el("mark", {}, node) : node;
  }

  pass(mark) {
    this.on = mark === START;
    return mark.startsWith(END) ? [this.footnote(mark.slice(1).replace(STOP, ""))] : [];
  }

  strip(text) {
    return text.replace(/\uFDD0|\uFDD1([^\uFDD2]*)\uFDD2/g, (mark) => {
      this.notes.push(...this.pass(mark));
      return "";
    });
  }

  waiting() {
    return this.notes.splice(0);
  }
}
