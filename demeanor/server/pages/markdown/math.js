// LaTeX to MathML by Temml, which is fetched when the first formula comes. Until then, and where it fails, the formula is shown as it was written.
import { el } from "../dom.js";

const MAX_CHARS = 5000;
const MAX_DEPTH = 60;
const MAX_EXPANSIONS = 500;
const MAX_NODES = 5000;
let loading = null;

export function formula(source, display) {
  const made = el("span", { class: display ? "math display" : "math", role: "math", "aria-label": source }, el("code", { class: "inline" }, source));
  if (source.length > MAX_CHARS || depth(source) > MAX_DEPTH) return made;
  loading ??= import("../vendor/temml.js").then((module) => module.default);
  loading.then((temml) => draw(temml, source, display, made), () => {});
  return made;
}

function draw(temml, source, display, made) {
  const target = el("span", {});
  try {
    temml.render(source, target, { displayMode: display, throwOnError: true, trust: false, maxSize: [20, 400], maxExpand: MAX_EXPANSIONS });
  } catch {
    made.classList.add("unread");
    return;
  }
  if (target.getElementsByTagName("*").length > MAX_NODES) return;
  for (const link of target.querySelectorAll("[href], [src]")) link.removeAttribute(link.hasAttribute("href") ? "href" : "src");
  made.removeAttribute("role");
  made.removeAttribute("aria-label");
  made.replaceChildren(...target.childNodes);
}

function depth(source) {
  let deepest = 0, open = 0;
  for (const c of source) {
    if (c === "{" || c === "[") deepest = Math.max(deepest, (open += 1));
    else if (c === "}" || c === "]") open -= 1;
  }
  return Math.max(deepest, (source.match(/\\(left|begin|sqrt|frac|text)/g) ?? []).length > 300 ? Infinity : 0);
}
