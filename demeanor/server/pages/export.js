// A conversation as a file: Markdown to read, JSON to read in again or to work with.
import { el } from "./dom.js";
import { path, saidBy } from "./conversation.js";

export function asMarkdown(conversation) {
  const turns = path(conversation).flatMap(({ question, files, answers, blind, vote }) => [
    `## You\n\n${[...files.map(({ name }) => `(file ${name})`), question].join("\n\n")}`,
    ...answers.map((answer, i) => `## ${blind && !vote ? `Answer ${"AB"[i]}` : answer.model}\n\n${answer.refusal ?? saidBy(answer)}`),
  ]);
  return [`# ${conversation.title || "Conversation"}`, ...turns, ""].join("\n\n");
}

export function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: url, download: name.replace(/[^\p{L}\p{N} ._-]/gu, "_").slice(0, 80) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
