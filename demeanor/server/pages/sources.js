// The sources of an answer: numbered notes made of its citations and passages, and the dialog that opens a passage.
import { $, button, el, replace } from "./dom.js";
import { linkTo } from "./markdown/links.js";

const events = (answer, kind) => (answer.trace?.events ?? []).filter((event) => event.kind === kind);

// {notes, spans} of an answer; a note is {number, title, url, passage, quotes}, a span {start, end, note} in code points.
export function sourcesOf(answer) {
  const passages = new Map(events(answer, "passage").map((passage, i) => [passage.id, { passage, number: i + 1 }]));
  const given = events(answer, "citation").map((c) => ({ start: c.start, end: c.end, id: c.passage_id, quote: c.cited_text }));
  const cited = given.length ? given : (answer.annotations ?? []).map(({ url_citation: c }) => ({ start: c.start_index, end: c.end_index, id: c.url.replace(/^passage:/, ""), title: c.title, url: c.url }));
  const length = Array.from(answer.text).length;
  const notes = new Map(), spans = [];
  let at = 0;
  for (const { start, end, id, quote, title, url } of cited.sort((a, b) => a.start - b.start)) {
    if (start < at || end > length || end <= start) continue;
    const { passage, number } = passages.get(id) ?? {};
    if (!notes.has(id)) notes.set(id, { number: number ?? 0, title: passage?.source ?? title ?? id, url: linkTo(passage?.source ?? url ?? ""), passage, quotes: [] });
    const note = notes.get(id);
    note.quotes.push(quote || Array.from(answer.text).slice(start, end).join("").replace(/[\s.,;:!?]+$/, ""));
    spans.push({ start, end, id });
    at = end;
  }
  const taken = new Set([...notes.values()].map((note) => note.number));
  let free = 1;
  for (const note of notes.values()) {
    if (note.number) continue;
    while (taken.has(free)) free += 1;
    taken.add((note.number = free));
  }
  return { notes: [...notes.values()].sort((a, b) => a.number - b.number), spans: spans.map(({ start, end, id }) => ({ start, end, note: String(notes.get(id).number) })) };
}

// The node of a footnote, which opens its passage.
export function footnote(notes) {
  return (number) => {
    const note = notes.find((n) => String(n.number) === number);
    return el("sup", {}, note ? button(number, () => open(note), { class: "footnote", "aria-label": `Source ${number}: ${note.title}` }) : number);
  };
}

export function sourceList(notes) {
  if (!notes.length) return null;
  return el("div", { class: "sources", role: "group", "aria-label": "Sources" }, notes.map((note) =>
    button(el("span", {}, el("b", {}, String(note.number)), ` ${note.title}`), () => open(note), { title: "Open the passage" })));
}

function open({ number, title, url, passage, quotes }) {
  const place = [passage?.heading, passage?.page && `page ${passage.page}`, passage?.end > 0 && `characters ${passage.start} to ${passage.end}`].filter(Boolean).join(" · ");
  $("passage-title").textContent = `${number}. ${title}`;
  replace($("passage-text"),
    place && el("p", { class: "soft" }, place),
    passage?.text ? el("blockquote", { class: "cited", tabindex: "0", dir: "auto" }, highlighted(passage.text, quotes))
      : [el("p", { class: "soft" }, "This server does not show the passage. The answer cites:"), ...quotes.map((quote) => el("blockquote", { class: "cited", dir: "auto" }, quote))],
    url && el("p", {}, el("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, url)));
  $("passage").showModal();
}

// A passage with the quoted words marked.
export function highlighted(text, quotes) {
  const found = quotes.filter(Boolean).map((quote) => [text.toLowerCase().indexOf(quote.toLowerCase()), quote.length]);
  const parts = [];
  let at = 0;
  for (const [start, length] of found.filter(([start]) => start >= 0).sort((a, b) => a[0] - b[0])) {
    if (start < at) continue;
    parts.push(text.slice(at, start), el("mark", {}, text.slice(start, start + length)));
    at = start + length;
  }
  return [...parts, text.slice(at)];
}
