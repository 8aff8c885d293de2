// Markdown to a tree of blocks: one pass over the lines a level, at most MAX_DEPTH levels, no HTML. Text inside blocks stays Markdown.
// Each top-level block keeps `source`, its own lines, so that a caller can tell what has not changed.

const MAX_DEPTH = 12;
const MAX_COLUMNS = 64;
const MAX_ROWS = 1000;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?=[ \t]|$)/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const TASK = /^\[([ xX])\][ \t]+/;

const blank = (line) => !/[^ \t\r]/.test(line);

export function blocks(text) {
  return parse(text.replaceAll("\r\n", "\n").split("\n"), 0);
}

function parse(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) at += 1;
    else {
      const [block, next] = one(lines, at, depth);
      block.source = depth === 0 ? lines.slice(at, next).join("\n") : "";
      block.from = at;
      block.to = next;
      found.push(block);
      at = next;
    }
  }
  return found;
}

function one(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return code(lines, at, fence);
  const displayed = mathematics(lines, at);
  if (displayed) return displayed;
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, text: title(line.slice(heading[0].length)) }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) {
    const made = table(lines, at);
    if (made) return made;
  }
  return paragraph(lines, at, depth);
}

function title(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (end > 0 && trimmed[end - 1] === "#") end -= 1;
  return end === trimmed.length || (end > 0 && trimmed[end - 1] !== " ") ? trimmed : trimmed.slice(0, end).trimEnd();
}

function code(lines, at, [, mark, info]) {
  const indent = lines[at].search(/[`~]/);
  const body = [];
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const closing = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(lines[next]);
    if (closing && closing[1][0] === mark[0] && closing[1].length >= mark.length) break;
    body.push(strip(lines[next], indent));
  }
  const open = next === lines.length;
  return [{ type: "code", language: info.trim().split(/\s/)[0].slice(0, 40), text: body.join("\n"), open }, open ? next : next + 1];
}

const MATHEMATICS = [["$$", "$$"], ["\\[", "\\]"]];
const MAX_MATH_LINES = 200;

function mathematics(lines, at) {
  const start = lines[at].trimStart();
  for (const [open, close] of MATHEMATICS) {
    if (!start.startsWith(open)) continue;
    const first = start.slice(open.length);
    const end = first.indexOf(close);
    if (end >= 0) return first.slice(end + close.length).trim() ? null : [{ type: "math", text: first.slice(0, end) }, at + 1];
    const body = [first];
    for (let next = at + 1; next < Math.min(lines.length, at + MAX_MATH_LINES) && !blank(lines[next]); next += 1) {
      const stop = lines[next].indexOf(close);
      if (stop < 0) body.push(lines[next]);
      else if (lines[next].slice(stop + close.length).trim()) return null;
      else return [{ type: "math", text: [...body, lines[next].slice(0, stop)].join("\n") }, next + 1];
    }
  }
  return null;
}

function quote(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length; next += 1) {
    if (QUOTE.test(lines[next])) inner.push(lines[next].replace(/^ {0,3}> ?/, ""));
    else if (blank(lines[next]) || interrupts(lines[next]) || blank(inner.at(-1)) || FENCE.test(inner.at(-1))) break;
    else inner.push(lines[next]);
  }
  return [{ type: "quote", blocks: parse(inner, depth + 1) }, next];
}

// ---- lists ----

function list(lines, at, depth) {
  const kind = (mark) => mark.at(-1);
  const first = ITEM.exec(lines[at])[2];
  const items = [];
  let next = at, loose = false;
  for (let mark = ITEM.exec(lines[at]); mark && kind(mark[2]) === kind(first) && !RULE.test(lines[next]);) {
    const [item, end] = itemLines(lines, next, mark);
    items.push(item);
    const after = skipBlank(lines, end);
    mark = after < lines.length ? ITEM.exec(lines[after]) : null;
    const more = mark && kind(mark[2]) === kind(first) && !RULE.test(lines[after]);
    if (more && after > end) loose = true;
    next = more ? after : end;
    if (!more) break;
  }
  const parsed = items.map((item) => {
    const task = TASK.exec(item[0]);
    if (task) item[0] = item[0].slice(task[0].length);
    const inside = parse(item, depth + 1);
    loose ||= inside.some((block, i) => i > 0 && block.from > inside[i - 1].to);
    return { checked: task ? task[1] !== " " : null, blocks: inside };
  });
  const ordered = /\d/.test(first);
  return [{ type: "list", ordered, start: ordered ? parseInt(first, 10) : 1, loose, items: parsed }, next];
}

function itemLines(lines, at, mark) {
  const lead = mark[0].length;
  const spaces = indentOf(lines[at].slice(lead));
  const content = blank(lines[at].slice(lead)) || spaces > 4 ? lead + 1 : lead + spaces;
  const item = [strip(lines[at].slice(lead), content - lead)];
  let next = at + 1, fenced = FENCE.test(item[0]);
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    if (blank(line)) {
      const after = skipBlank(lines, next);
      if (after === lines.length || indentOf(lines[after]) < content) break;
      for (; next < after; next += 1) item.push("");
      next -= 1;
      continue;
    }
    if (indentOf(line) >= content) {
      item.push(strip(line, content));
      if (FENCE.test(item.at(-1))) fenced = !fenced;
    } else if (fenced || blank(item.at(-1)) || interrupts(line) || ITEM.test(line)) break;
    else item.push(line.trimStart()); // a lazy continuation of the paragraph
  }
  return [item, next];
}

function skipBlank(lines, at) {
  let next = at;
  while (next < lines.length && blank(lines[next])) next += 1;
  return next;
}

function indentOf(line) {
  let columns = 0;
  for (const c of line) {
    if (c === " ") columns += 1;
    else if (c === "\t") columns += 4 - (columns % 4);
    else break;
  }
  return columns;
}

function strip(line, columns) {
  let at = 0, seen = 0;
  while (seen < columns && (line[at] === " " || line[at] === "\t")) {
    seen += line[at] === " " ? 1 : 4 - (seen % 4);
    at += 1;
  }
  return " ".repeat(Math.max(0, seen - columns)) + line.slice(at);
}

// ---- tables and paragraphs ----

function isTable(lines, at) {
  return lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DELIMITERS.test(lines[at + 1]);
}

function table(lines, at) {
  const head = cells(lines[at]);
  const marks = cells(lines[at + 1]);
  if (head.length !== marks.length || head.length > MAX_COLUMNS) return null;
  const align = marks.map((m) => (m.endsWith(":") ? (m.startsWith(":") ? "center" : "right") : m.startsWith(":") ? "left" : null));
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && rows.length < MAX_ROWS && !blank(lines[next]) && lines[next].includes("|") && !interrupts(lines[next]); next += 1) {
    const row = cells(lines[next]).slice(0, head.length);
    rows.push([...row, ...Array(head.length - row.length).fill("")]);
  }
  return [{ type: "table", align, head, rows }, next];
}

function cells(line) {
  const found = [];
  let text = "", quoted = false;
  const inner = line.trim().replace(/^\|/, "");
  for (let i = 0; i < inner.length && found.length <= MAX_COLUMNS; i += 1) {
    if (inner[i] === "\\" && inner[i + 1] === "|") { text += "|"; i += 1; }
    else if (inner[i] === "|" && !quoted) { found.push(text.trim()); text = ""; }
    else {
      if (inner[i] === "`") quoted = !quoted && inner.indexOf("`", i + 1) > 0;
      text += inner[i];
    }
  }
  return text.trim() || !inner.endsWith("|") ? [...found, text.trim()] : found;
}

function paragraph(lines, at, depth) {
  let next = at + 1;
  for (; next < lines.length && !blank(lines[next]); next += 1) {
    const under = /^ {0,3}(=+|-+)[ \t]*$/.exec(lines[next]);
    if (under && depth < MAX_DEPTH) {
      return [{ type: "heading", level: under[1][0] === "=" ? 1 : 2, text: lines.slice(at, next).join("\n").trim() }, next + 1];
    }
    if (depth < MAX_DEPTH && (interrupts(lines[next]) || isTable(lines, next))) break;
  }
  return [{ type: "paragraph", text: lines.slice(at, next).map((line) => line.trimStart()).join("\n").trimEnd() }, next];
}

function interrupts(line) {
  const item = ITEM.exec(line);
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || /^ {0,3}(\$\$|\\\[)/.test(line)
    || (item !== null && !blank(line.slice(item[0].length)) && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1));
}
