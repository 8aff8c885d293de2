// Source text to spans by kind of token: comment, string, number, keyword, name that is called. One regular expression a family of languages.
import { el } from "../dom.js";

const MAX_CHARS = 100_000;
const words = (text) => new Set(text.split(" "));
const STRINGS = String.raw`"(?:\\[^]|[^"\\\n])*"?|'(?:\\[^]|[^'\\\n])*'?`;
const HASH = String.raw`#[^\n]*`;
const SLASHES = String.raw`\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)`;
const TRIPLES = String.raw`"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)`;
const TEMPLATE = "`(?:\\\\[^]|[^`\\\\])*`?";

const C_LIKE = "auto break case char class const constexpr continue default delete do double else enum extern false float for friend if inline int long namespace new nullptr operator private protected public return short signed sizeof static struct switch template this throw true try typedef typename union unsigned using virtual void volatile while";
const FAMILIES = [
  { names: "python py", comment: HASH, string: `${TRIPLES}|${STRINGS}`, keywords: "and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return self True try while with yield" },
  { names: "javascript js jsx typescript ts tsx mjs", comment: SLASHES, string: `${STRINGS}|${TEMPLATE}`, keywords: "abstract as async await break case catch class const continue debugger default delete do else enum export extends false finally for from function if implements import in instanceof interface let new null of private protected public readonly return static super switch this throw true try type typeof undefined var void while yield" },
  { names: "json jsonc", comment: SLASHES, string: STRINGS, keywords: "true false null" },
  { names: "bash sh shell zsh console", comment: HASH, string: STRINGS, keywords: "case do done elif else esac export fi for function if in local return select set then until while cd echo exit sudo" },
  { names: "sql postgresql sqlite", comment: String.raw`--[^\n]*|\/\*[^]*?(?:\*\/|$)`, string: STRINGS, fold: true, keywords: "add all alter and as asc begin between by case commit create cross default delete desc distinct drop else end exists foreign from full group having if in index inner insert into is join key left like limit not null on or order outer primary references right rollback select set table then union unique update using values view when where with" },
  { names: "c cpp c++ h hpp cc cuda", comment: SLASHES, string: STRINGS, keywords: C_LIKE },
  { names: "java kotlin scala csharp cs c# swift dart php", comment: SLASHES, string: STRINGS, keywords: `${C_LIKE} abstract extends final finally fun implements import in instanceof interface internal is let null object override package readonly sealed string super synchronized throws val var when func guard self nil extension foreach echo function` },
  { names: "rust rs", comment: SLASHES, string: String.raw`"(?:\\[^]|[^"\\])*"?|'(?:\\[^]|[^'\\\n])'`, keywords: "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while" },
  { names: "go golang", comment: SLASHES, string: `${STRINGS}|${TEMPLATE}`, keywords: "break case chan const continue default defer else false for func go goto if import interface map nil package range return select struct switch true type var" },
  { names: "yaml yml toml ini dockerfile makefile make r ruby rb perl elixir", comment: HASH, string: `${TRIPLES}|${STRINGS}`, keywords: "true false null yes no on off def end do if else elsif unless class module return function library FROM RUN COPY CMD ENV WORKDIR" },
  { names: "html xml svg vue", comment: String.raw`<!--[^]*?(?:-->|$)`, string: STRINGS, keywords: "", tags: true },
  { names: "css scss less", comment: String.raw`\/\*[^]*?(?:\*\/|$)`, string: STRINGS, keywords: "important media supports import from to" },
  { names: "diff patch", lines: true },
];

const known = new Map(FAMILIES.flatMap((family) => family.names.split(" ").map((name) => [name, family])));

function expression(family) {
  family.words ??= words(family.keywords);
  family.pattern ??= new RegExp(`(${family.comment})|(${family.string})|\\b(0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b|(${family.tags ? "<\\/?[\\w:-]+|\\/?>" : "[A-Za-z_$][\\w$]*"})`, "g");
  return family;
}

// The text as nodes for a <code> element.
export function highlighted(text, language) {
  const family = known.get(language.toLowerCase());
  if (!family || text.length > MAX_CHARS) return shown(text);
  if (family.lines) return text.split(/(?<=\n)/).flatMap((line) => token(line, line[0] === "+" ? "added" : line[0] === "-" ? "removed" : line[0] === "@" ? "comment" : ""));
  const { pattern, words: keywords, fold, tags } = expression(family);
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(pattern)) {
    const [whole, comment, string, number, word] = found;
    const end = found.index + whole.length;
    const kind = comment ? "comment" : string ? "string" : number ? "number"
      : tags || keywords.has(fold ? word.toLowerCase() : word) ? "keyword" : text[end] === "(" ? "called" : "";
    if (!kind) continue;
    parts.push(...shown(text.slice(at, found.index)), ...token(whole, kind));
    at = end;
  }
  return [...parts, ...shown(text.slice(at))];
}

function token(text, kind) {
  return kind ? [el("span", { class: `t-${kind}` }, ...shown(text))] : shown(text);
}

// Characters that would reorder or hide source text are shown by their number.
function shown(text) {
  return text.split(/([\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff])/).filter(Boolean).map((part) =>
    /^[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]$/.test(part)
      ? el("span", { class: "t-hidden", title: "A character that cannot be seen" }, `U+${part.codePointAt(0).toString(16).toUpperCase()}`)
      : document.createTextNode(part));
}
