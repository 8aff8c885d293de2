// A tree of blocks to elements. What is beyond MAX_NODES of one text is shown as it was written.
import { el } from "../dom.js";
import { blocks } from "./blocks.js";
import { inline } from "./inline.js";
import { highlighted } from "./highlight.js";
import { formula } from "./math.js";
import { Marks, unmarked, withMarks } from "./citations.js";
import { copied } from "../clipboard.js";

const MAX_NODES = 20_000;
const nothing = () => [];

export function contextOf(footnote = nothing) {
  let used = 0;
  return { marks: new Marks(footnote), formula, spend: (count = 1) => { used += count; }, left: () => used < MAX_NODES };
}

// The elements of a whole text; `spans` are its citations ({start, end, note}), `footnote` makes the node of a note.
export function markdown(text, { spans = [], footnote } = {}) {
  const context = contextOf(footnote);
  return blocks(withMarks(text, spans)).flatMap((block) => elements(block, context));
}

export { blocks, unmarked };

// The elements of one block.
export function elements(block, context) {
  if (!context.left()) return [plain(block, context), ...context.marks.waiting()];
  context.spend();
  const made = MAKERS[block.type](block, context);
  return [made, ...context.marks.waiting()];
}

function plain(block, context) {
  return el("p", { class: "plain", dir: "auto" }, context.marks.strip(block.source || block.text || ""));
}

const MAKERS = {
  paragraph: ({ text }, context) => el("p", { dir: "auto" }, inline(text, context)),
  heading: ({ level, text }, context) => el(`h${Math.min(6, level + 2)}`, { class: `h${level}`, dir: "auto" }, inline(text, context)),
  rule: () => el("hr"),
  code: ({ text, language }, context) => codeBlock(context.marks.strip(text), language),
  math: ({ text }, context) => el("div", { class: "displayed" }, formula(context.marks.strip(text), true)),
  quote: (block, context) => el("blockquote", { class: "said" }, block.blocks.flatMap((inner) => elements(inner, context))),
  list,
  table,
};

export function codeBlock(text, language) {
  const button = el("button", { type: "button", class: "copy", "aria-label": language ? `Copy the ${language} code` : "Copy the code" }, "Copy");
  const code = el("code", { tabindex: "0", "aria-label": language ? `${language} code` : "code", role: "group" }, highlighted(text, language));
  code.source = text;
  button.addEventListener("click", () => copied(button, () => code.source));
  return el("figure", { class: "code" }, el("figcaption", {}, el("span", {}, language || "text"), button), el("pre", { dir: "ltr" }, code));
}

function list({ ordered, start, loose, items }, context) {
  const made = items.map(({ checked, blocks: inside }) => {
    const content = inside.flatMap((block) =>
      !loose && block.type === "paragraph" ? [...inline(block.text, context), "\n"] : elements(block, context));
    if (checked === null) return el("li", { dir: "auto" }, content);
    return el("li", { class: "task", dir: "auto" }, el("span", { class: checked ? "box checked" : "box", role: "img", "aria-label": checked ? "done" : "not done" }), content);
  });
  context.spend(items.length);
  return ordered ? el("ol", { start: start === 1 ? null : String(start) }, made) : el("ul", {}, made);
}

function table({ align, head, rows }, context) {
  const cell = (tag, scope) => (text, i) => el(tag, { scope, class: align[i] && `at-${align[i]}`, dir: "auto" }, inline(text, context));
  context.spend(head.length * (rows.length + 1));
  const body = context.left() ? rows.map((row) => el("tr", {}, row.map(cell("td")))) : [el("tr", {}, el("td", { colspan: String(head.length) }, `${rows.length} rows are not shown: the answer is too large.`))];
  return el("div", { class: "scroller", tabindex: "0", role: "group", "aria-label": "Table" },
    el("table", {}, el("thead", {}, el("tr", {}, head.map(cell("th", "col")))), el("tbody", {}, body)));
}
