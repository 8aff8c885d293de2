// The operators' pages: recorded turns, what the policy did, experiments, evaluators. Each view is a module that fills the page.
// Everything that people, models and documents wrote is put into the page as text, never as markup.
import { $, button, el, replace } from "./dom.js";
import { locked, unlock } from "./locked.js";
import { plainWords } from "./errors.js";
import { theme } from "./settings.js";
import { turnList } from "./operator/turns.js";
import { turnPage } from "./operator/turn.js";
import { policyPage } from "./operator/policy.js";
import { experimentsPage } from "./operator/experiments.js";
import { evaluatorsPage } from "./operator/evaluators.js";

const query = new URLSearchParams(location.search);

function viewOf(path) {
  if (path.endsWith("/policy")) return ["Policy", policyPage];
  if (path.endsWith("/experiments")) return ["Experiments", experimentsPage];
  if (path.endsWith("/evaluators")) return ["Evaluators", evaluatorsPage];
  return query.get("turn") ? ["Turn", turnPage] : ["Turns", turnList];
}

async function start() {
  const [title, view] = viewOf(location.pathname);
  document.title = `${title} · Operators`;
  for (const link of $("nav").children) if (link.pathname === location.pathname) link.setAttribute("aria-current", "page");
  replace($("view"), el("h1", {}, title), el("p", { class: "soft" }, "Loading ..."));
  try {
    const found = await view(query);
    replace($("view"), el("h1", {}, title), found);
  } catch (error) {
    const key = sessionStorage.getItem("key");
    if (error.status === 401 || (error.status === 403 && error.code === "insufficient_scope")) unlock(key ? "That key does not open these pages." : "");
    const { title: words, advice, detail } = plainWords(error);
    replace($("view"), el("h1", {}, title), el("div", { class: "problem", role: "alert" }, el("b", {}, error.code === "no_record_layer" || error.code === "no_traffic" ? error.message : words), ` ${advice} `,
      button("Try again", start, { class: "retry" }), el("small", {}, detail)));
  }
  document.body.dataset.ready = "yes";
}

theme();
$("theme").addEventListener("change", () => theme($("theme").value));
locked(start);
start();
