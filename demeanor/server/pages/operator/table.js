// A table that becomes a list of cards on a narrow screen: every cell carries the name of its column.
import { el } from "../dom.js";

// `rows` are lists of cells: text or nodes, the first one names its row; `numeric` are the numbers of columns with numbers.
export function table(label, head, rows, { numeric = [], said = [] } = {}) {
  const cell = (content, i) => el(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: numeric.includes(i) ? "num" : said.includes(i) ? "said" : null, "data-label": head[i] }, el("div", {}, content));
  const line = (cells) => el("tr", {}, cells.map(cell));
  const body = el("tbody", {}, rows.map(line));
  const box = el("div", { class: "scroller", tabindex: "0", role: "group", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, head.map((name, i) => el("th", { scope: "col", class: numeric.includes(i) ? "num" : null }, name)))), body));
  return { box, add: (more) => body.append(...more.map(line)) };
}
