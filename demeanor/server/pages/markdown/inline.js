// The text of one block to nodes: emphasis, code, links, mathematics, line breaks, citation marks. Linear in the text, at most MAX_OPEN
// emphases deep; every string becomes a text node. `marks` (citations.js) knows which part is cited; `formula` makes mathematics.
import { el } from "../dom.js";
import { linkTo, host } from "./links.js";

const MAX_OPEN = 50;
const MAX_RUN = 12;
const MAX_MATH = 5000;
const MAX_BRACKETS = 8;
const SPECIAL = /[\\`*_~[\]!<&$\n\uFDD0\uFDD1]|https?:\/\//g;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", ndash: "–", mdash: "—", hellip: "…", times: "×", rarr: "→", copy: "©", deg: "°" };

export function inline(text, context) {
  return new Inline(text, context).nodes();
}

class Inline {
  constructor(text, context) {
    Object.assign(this, { text, context, at: 0, parts: [], brackets: [], next: new Map() });
  }

  nodes() {
    const { text } = this;
    SPECIAL.lastIndex = 0;
    let plain = 0;
    while (this.at < text.length) {
      SPECIAL.lastIndex = this.at;
      const found = this.context.left() ? SPECIAL.exec(text) : null;
      this.at = found ? found.index : text.length;
      this.say(text.slice(plain, this.at));
      if (!found) break;
      const before = this.at;
      this.special(found[0]);
      if (this.at === before) { // nothing came of it: it stands for itself
        this.say(found[0]);
        this.at += found[0].length;
      }
      plain = this.at;
    }
    return emphasised(this.parts);
  }

  say(text) {
    if (!text) return;
    this.context.spend();
    this.parts.push(this.context.marks.text(text));
  }

  add(node) {
    this.context.spend();
    this.parts.push(this.context.marks.node(node));
  }

  special(c) {
    switch (c) {
      case "\\": return this.escaped();
      case "`": return this.code();
      case "*": case "_": case "~": return this.delimiter(c);
      case "[": return this.bracket(false);
      case "!": return this.text[this.at + 1] === "[" ? this.bracket(true) : undefined;
      case "]": return this.link();
      case "<": return this.angle();
      case "&": return this.entity();
      case "$": return this.dollars();
      case "\n": return this.line();
      case "\uFDD0": case "\uFDD1": return this.citation();
      default: return this.address();
    }
  }

  // The first place of `sought` from `from` on; remembered, so that a text without it is read once.
  find(sought, from) {
    const known = this.next.get(sought);
    if (known !== undefined && (known < 0 || known >= from)) return known;
    const place = this.text.indexOf(sought, from);
    this.next.set(sought, place);
    return place;
  }

  escaped() {
    const c = this.text[this.at + 1];
    if (c === "(" || c === "[") {
      const end = this.find(c === "(" ? "\\)" : "\\]", this.at + 2);
      if (end > 0 && end - this.at < MAX_MATH) return this.mathematics(this.at + 2, end, 2, c === "[");
    }
    if (c === "\n") {
      this.parts.push(el("br"));
      this.at += 2;
    } else if (c && /[!-/:-@[-`{-~]/.test(c)) {
      this.say(c);
      this.at += 2;
    }
  }

  code() {
    const run = /`+/y;
    run.lastIndex = this.at;
    const length = run.exec(this.text)[0].length;
    const from = this.at + length;
    const end = this.closing(length, from);
    if (end < 0) {
      this.say("`".repeat(length));
      this.at = from;
      return;
    }
    const inner = this.context.marks.strip(this.text.slice(from, end).replaceAll("\n", " "));
    this.add(el("code", { class: "inline" }, inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() ? inner.slice(1, -1) : inner));
    this.notes();
    this.at = end + length;
  }

  closing(length, from) {
    if (!this.runs) {
      this.runs = new Map();
      for (const { 0: ticks, index } of this.text.matchAll(/`+/g)) {
        if (!this.runs.has(ticks.length)) this.runs.set(ticks.length, { places: [], at: 0 });
        this.runs.get(ticks.length).places.push(index);
      }
    }
    const known = this.runs.get(length);
    if (!known) return -1;
    while (known.at < known.places.length && known.places[known.at] < from) known.at += 1;
    return known.places[known.at] ?? -1;
  }

  delimiter(c) {
    let end = this.at;
    while (this.text[end] === c) end += 1;
    const count = end - this.at;
    const before = beside(this.text, this.at - 1, -1), after = beside(this.text, end, 1);
    const left = !space(after) && (!PUNCTUATION.test(after) || space(before) || PUNCTUATION.test(before));
    const right = !space(before) && (!PUNCTUATION.test(before) || space(after) || PUNCTUATION.test(after));
    const open = left && (c !== "_" || !right || PUNCTUATION.test(before));
    const close = right && (c !== "_" || !left || PUNCTUATION.test(after));
    const product = c === "*" && count === 1 && /\d/.test(before) && /\d/.test(after);
    if (product || count > MAX_RUN || (c === "~" && count > 2)) this.say(c.repeat(count));
    else this.parts.push({ c, count, open, close });
    this.context.spend();
    this.at = end;
  }

  bracket(image) {
    this.brackets.push({ part: this.parts.length, image, active: true });
    this.parts.push(this.context.marks.text(image ? "![" : "["));
    this.at += image ? 2 : 1;
  }

  link() {
    const opened = this.brackets.pop();
    if (!opened?.active || this.text[this.at + 1] !== "(") return;
    const target = destination(this.text, this.at + 2);
    if (!target) return;
    const inner = emphasised(this.parts.splice(opened.part).slice(1));
    const words = el("span", {}, ...inner).textContent;
    const address = linkTo(this.context.marks.strip(target.url));
    if (!address) this.add(el("span", { class: "nolink", title: "This address is not opened from here." }, ...inner, ` (${target.url})`));
    else {
      const elsewhere = /^\s*(https?:\/\/|www\.)/.test(words) && host(words.trim()) !== host(address);
      this.add(anchor(address, opened.image ? ["picture: ", ...(words ? inner : [address])] : words ? inner : [address]));
      if (elsewhere) this.say(` (${host(address)})`);
      for (const earlier of this.brackets) earlier.active = false; // no link inside a link
    }
    this.notes();
    this.at = target.end;
  }

  angle() {
    const rest = this.text.slice(this.at, this.at + 2000);
    const written = /^<(https?:\/\/[^\s<>]+|mailto:[^\s<>]+)>/.exec(rest);
    const address = written && linkTo(this.context.marks.strip(written[1]));
    if (address) {
      this.add(anchor(address, [written[1]]));
      this.at += written[0].length;
    } else if (/^<br ?\/?>/i.test(rest)) {
      this.parts.push(el("br"));
      this.at += rest.indexOf(">") + 1;
    }
  }

  entity() {
    const written = /^&(?:(\w{2,8})|#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6}));/.exec(this.text.slice(this.at, this.at + 12));
    if (!written) return;
    const code = written[2] ? parseInt(written[2], 10) : written[3] ? parseInt(written[3], 16) : null;
    const valid = code !== null && code > 31 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff) && !(code >= 0xfdd0 && code <= 0xfdef);
    const character = valid ? String.fromCodePoint(code) : Object.hasOwn(ENTITIES, written[1] ?? "") ? ENTITIES[written[1]] : null;
    if (character === null) return;
    this.say(character);
    this.at += written[0].length;
  }

  dollars() {
    const { text, at } = this;
    if (text[at + 1] === "$") {
      const end = this.find("$$", at + 2);
      if (end > at + 2 && end - at < MAX_MATH) this.mathematics(at + 2, end, 2, true);
      else { this.say("$$"); this.at += 2; }
      return;
    }
    if (!text[at + 1] || space(text[at + 1]) || /[\w$\\]/.test(text[at - 1] ?? " ")) return;
    const end = this.dollar(at + 1);
    if (end > at + 1 && end - at < MAX_MATH) this.mathematics(at + 1, end, 1, false);
  }

  // The next dollar, if it can close a formula: no space or backslash before it, no digit after it.
  dollar(from) {
    const place = this.find("$", from);
    return place < 0 || /[\s\\]/.test(this.text[place - 1]) || /[\d$]/.test(this.text[place + 1] ?? " ") ? -1 : place;
  }

  mathematics(from, to, mark, display) {
    this.add(this.context.formula(this.context.marks.strip(this.text.slice(from, to)), display));
    this.notes();
    this.at = to + mark;
  }

  line() {
    const last = this.parts.at(-1);
    if (last?.nodeType === Node.TEXT_NODE) last.data = last.data.trimEnd();
    this.parts.push(el("br"), "\n");
    this.at += 1;
  }

  citation() {
    const end = this.text[this.at] === "\uFDD1" ? this.text.indexOf("\uFDD2", this.at) + 1 : this.at + 1;
    this.parts.push(...this.context.marks.pass(this.text.slice(this.at, Math.max(end, this.at + 1))));
    this.at = Math.max(end, this.at + 1);
  }

  notes() {
    this.parts.push(...this.context.marks.waiting());
  }

  address() {
    if (/\w/.test(this.text[this.at - 1] ?? " ")) return;
    const found = /^https?:\/\/[^\s<>\uFDD0-\uFDD2]+/.exec(this.text.slice(this.at, this.at + 2000));
    if (!found) return;
    const written = withoutEnd(found[0]);
    const address = linkTo(written);
    if (!address) return;
    this.add(anchor(address, [written]));
    this.at += written.length;
  }
}

function anchor(address, children) {
  return el("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow ugc" }, ...children);
}

// An address without the punctuation of the sentence around it, and without brackets that it did not open.
function withoutEnd(written) {
  let open = 0, end = written.length;
  for (const c of written) open += "([".includes(c) ? 1 : ")]".includes(c) ? -1 : 0;
  for (; end > 0; end -= 1) {
    const c = written[end - 1];
    if (")]".includes(c) && open < 0) open += 1;
    else if (!"*_~`|\"'.,;:!?".includes(c)) break;
  }
  return written.slice(0, end);
}

const space = (c) => c === "" || /\s/.test(c);

function beside(text, at, step) {
  let place = at;
  while (text[place] >= "\uFDD0" && text[place] <= "\uFDD2") place += step; // marks are not there
  return text[place] ?? "";
}

function destination(text, from) {
  const rest = text.slice(from, from + 2000);
  const pointed = /^[ \n]*<([^<>\n]*)>/.exec(rest);
  let at = pointed ? pointed[0].length : /^[ \n]*/.exec(rest)[0].length;
  let url = pointed ? pointed[1] : "";
  if (!pointed) {
    let depth = 0;
    const start = at;
    for (; at < rest.length && !/[\s\u0000-\u001f]/.test(rest[at]); at += 1) {
      if (rest[at] === "\\" && /[()\\]/.test(rest[at + 1] ?? "")) at += 1;
      else if (rest[at] === "(" && depth === MAX_BRACKETS) return null;
      else if (rest[at] === "(") depth += 1;
      else if (rest[at] === ")" && depth === 0) break;
      else if (rest[at] === ")") depth -= 1;
    }
    url = rest.slice(start, at).replace(/\\([()\\])/g, "$1");
  }
  const end = /^(?:[ \n]+(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\((?:[^()\\]|\\.)*\)))?[ \n]*\)/.exec(rest.slice(at));
  return end ? { url, end: from + at + end[0].length } : null;
}

// Delimiters among nodes to nested elements: CommonMark's rules, with at most MAX_OPEN open at once.
function emphasised(parts) {
  const frames = [{ delimiter: null, children: [] }];
  const close = (index) => { // frames above `index` were never closed: they are text
    const children = frames.splice(index + 1).flatMap((frame) => [literal(frame.delimiter), ...frame.children]);
    for (const child of children) frames[index].children.push(child);
  };
  for (const part of parts) {
    if (part.count === undefined) {
      frames.at(-1).children.push(part);
      continue;
    }
    while (part.count > 0 && part.close) {
      const index = frames.findLastIndex((frame) => frame.delimiter?.c === part.c && matches(frame.delimiter, part));
      if (index < 0) break;
      close(index);
      const frame = frames[index];
      const used = part.c === "~" ? part.count : Math.min(2, part.count, frame.delimiter.count);
      const made = el(part.c === "~" ? "del" : used === 2 ? "strong" : "em", {}, ...frame.children);
      frame.delimiter.count -= used;
      part.count -= used;
      if (frame.delimiter.count) frame.children = [made];
      else {
        frames.pop();
        frames.at(-1).children.push(made);
      }
    }
    if (part.count > 0 && part.open && frames.length <= MAX_OPEN) frames.push({ delimiter: part, children: [] });
    else if (part.count > 0) frames.at(-1).children.push(literal(part));
  }
  close(0);
  return frames[0].children;
}

function matches(opener, closer) {
  if (closer.c === "~") return opener.count === closer.count;
  const odd = (opener.close || closer.open) && (opener.count + closer.count) % 3 === 0;
  return !(odd && (opener.count % 3 || closer.count % 3));
}

function literal({ c, count }) {
  return document.createTextNode(c.repeat(count));
}
