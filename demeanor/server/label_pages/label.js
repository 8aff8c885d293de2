// The work of a labeller: one item at a time, by keys or by touch; a label is sent until the server says that it is kept.
import { el, replace } from "./dom.js";
import { markdown } from "./markdown/render.js";
import { team } from "./label_team.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = 2000;
const token = takeToken();
let me, item, started, order, choice, sending = false;

// The token stands behind the # of the link, which no server and no log sees; it stays in this tab.
function takeToken() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem("link", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("link") ?? "";
}

async function call(path, body) {
  const response = await fetch(`/label/api/${path}`, {
    method: body ? "POST" : "GET",
    headers: { authorization: `Bearer ${token}`, ...(body ? { "content-type": "application/json" } : {}) },
    ...(body ? { body: JSON.stringify(body) } : {}),
  });
  const answer = await response.json();
  if (!response.ok) {
    const error = new Error(answer.error?.message ?? `The server answered ${response.status}.`);
    Object.assign(error, { status: response.status, code: answer.error?.code });
    throw error;
  }
  return answer;
}

// Send until there is an answer: what went wrong on the way is tried again, what the server refuses is thrown.
async function insist(path, body) {
  for (;;) {
    try {
      const answer = await call(path, body);
      say("");
      return answer;
    } catch (error) {
      if (error.status && error.status < 500 && error.status !== 429 && error.status !== 408) throw error;
      say("The server does not answer. Your work is kept here and sent again; leave this page open.");
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function say(text) {
  $("status").textContent = text;
}

function showProgress(found) {
  const adjudicates = me.role === "adjudicator";
  const [done, all] = adjudicates ? [found.adjudicated, found.disagreements] : [found.given, found.wanted];
  $("bar").max = Math.max(1, all);
  $("bar").value = done;
  $("count").textContent = `${done} of ${all} ${adjudicates ? "adjudicated" : "labels"}${me.role === "owner" ? "" : `, ${found.yours} by you`}`;
}

async function next(path = "next") {
  const found = await insist(path, {});
  showProgress(found.progress);
  if (!found.item && path === "previous") return say("You have given no label yet.");
  item = found.item;
  $("work").hidden = !item;
  $("empty").hidden = Boolean(item);
  if (item) show();
  else $("over").focus();
}

// ---- one item ----

function show() {
  started = performance.now();
  order = [];
  choice = "";
  $("reason").value = item.given?.reason ?? "";
  const size = item.answers.length, ranks = size > 2;
  $("notice").hidden = !item.adjudication && !item.given;
  $("notice").textContent = item.given ? "You change a label that you gave." : "Labellers disagree about this one. Your label decides.";
  replace($("prompt"), ...item.prompt.map((m) => el("p", { class: "message" }, el("b", {}, m.role), m.content)));
  $("question").textContent = ranks ? `${me.question} Choose the best first.` : me.question;
  replace($("answers"), ...item.answers.map((text, place) => card(text, place)));
  replace($("tie"), el("kbd", {}, ranks ? "T" : "0"), ranks ? " All equal" : " Tie");
  replace($("bad"), el("kbd", {}, "B"), size > 2 ? " All bad" : " Both bad");
  $("join").hidden = $("clear").hidden = !ranks;
  $("keys").textContent = ranks
    ? `Keys: 1 to ${size} choose the next best, = joins it to the one before, Backspace takes back, T all equal, B all bad, R reason, M text as written, S skip, Z last label.`
    : "Keys: 1 and 2 choose, 0 tie, B both bad, R reason, M text as written, Enter saves, S skip, Z last label.";
  replace($("opinions"), item.opinions.length && el("h2", {}, "What labellers said"), ...item.opinions.map(opinion));
  if (item.given) restore(item.given);
  mark();
  $("question").focus();
  scrollTo(0, 0);
}

function card(text, place) {
  const button = el("button", { type: "button", "aria-pressed": "false" }, el("kbd", {}, String(place + 1)), `Answer ${place + 1}`, el("span", { class: "rank" }));
  button.addEventListener("click", (event) => {
    pick(place);
    rest(event);
  });
  return el("article", { class: "answer" }, el("h3", { class: "hidden" }, `Answer ${place + 1}`), button, drawn(text, place));
}

// An answer as the chat page draws it, or every sign of it as it was written.
function drawn(text, place) {
  const raw = localStorage.getItem("raw") === "yes";
  return el("div", { class: raw ? "text raw" : "text", tabindex: "0", role: "group", "aria-label": `Text of answer ${place + 1}` }, raw ? text : markdown(text));
}

function asWritten() {
  const raw = localStorage.getItem("raw") !== "yes";
  localStorage.setItem("raw", raw ? "yes" : "no");
  $("raw").setAttribute("aria-pressed", String(raw));
  if (!item) return;
  for (const [place, one] of [...$("answers").children].entries()) one.lastElementChild.replaceWith(drawn(item.answers[place], place));
}

function opinion(given) {
  const names = { tie: "all equal", all_bad: "all bad" };
  const said = names[given.choice] ?? inWords(given.ranks);
  return el("blockquote", {}, el("b", {}, `${given.labeller}: ${said}`), given.reason ? `\n${given.reason}` : "");
}

function inWords(ranks) {
  const places = ranks.map((rank, place) => [rank, place + 1]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return places.map(([rank, place], n) => (n ? (rank === places[n - 1][0] ? " = " : " > ") : "") + place).join("");
}

// `order` is a list of groups of places, best first; answers of one group tie.
function restore(given) {
  choice = given.choice;
  if (choice !== "ranked") return;
  for (const rank of [...new Set(given.ranks)].sort((a, b) => a - b)) {
    order.push(given.ranks.flatMap((r, place) => (r === rank ? [place] : [])));
  }
}

let joining = false;

function pick(place) {
  const size = item.answers.length;
  if (size === 2) {
    order = choice === "ranked" && order[0]?.[0] === place ? [] : [[place], [1 - place]];
  } else if (order.flat().includes(place)) {
    order = order.map((group) => group.filter((p) => p !== place)).filter((group) => group.length);
  } else if (joining && order.length) {
    order.at(-1).push(place);
  } else {
    order.push([place]);
    const missing = [...Array(size).keys()].filter((p) => !order.flat().includes(p));
    if (missing.length === 1) order.push(missing); // the last place fills itself
  }
  joining = false;
  choice = order.length ? "ranked" : "";
  mark();
}

function verdict(name) {
  choice = choice === name ? "" : name;
  order = [];
  joining = false;
  mark();
}

function takeBack() {
  if (choice !== "ranked") {
    choice = "";
  } else if (item.answers.length === 2) {
    order = [];
  } else {
    order.pop();
  }
  if (!order.length && choice === "ranked") choice = "";
  mark();
}

function rankOf(place) {
  return order.findIndex((group) => group.includes(place));
}

function ready() {
  if (choice === "tie" || choice === "all_bad") return true;
  return choice === "ranked" && order.flat().length === item.answers.length && order.length > 1;
}

function mark() {
  for (const [place, one] of [...$("answers").children].entries()) {
    const rank = rankOf(place), best = rank === 0;
    one.classList.toggle("best", best);
    one.querySelector("button").setAttribute("aria-pressed", String(item.answers.length > 2 ? rank >= 0 : best));
    one.querySelector(".rank").textContent = rank < 0 ? "" : item.answers.length > 2 ? `place ${rank + 1}` : best ? "better" : "";
  }
  $("tie").setAttribute("aria-pressed", String(choice === "tie"));
  $("bad").setAttribute("aria-pressed", String(choice === "all_bad"));
  $("join").setAttribute("aria-pressed", String(joining));
  $("submit").disabled = !ready() || sending;
}

// ---- sending ----

async function send(given) {
  if (sending) return;
  sending = true;
  mark();
  const ranks = item.answers.map((_, place) => rankOf(place));
  const body = {
    item: item.id,
    choice: given,
    ...(given === "ranked" ? { ranks } : {}),
    reason: $("reason").value.trim(),
    ms: Math.min(86_400_000, Math.round(performance.now() - started)),
  };
  try {
    await insist("labels", body);
  } catch (error) {
    say(error.message);
    if (error.code !== "not_yours") return;
  } finally {
    sending = false;
    mark();
  }
  await next().catch(stop);
}

function stop(error) {
  say(error.message);
  $("work").hidden = $("empty").hidden = true;
}

const BUTTONS = {
  submit: () => ready() && send(choice), skip: () => send("skipped"), tie: () => verdict("tie"), bad: () => verdict("all_bad"),
  join, clear: takeBack, raw: asWritten, undo: () => next("previous").catch(stop), revise: () => next("previous").catch(stop), again: () => next().catch(stop),
};
for (const [id, act] of Object.entries(BUTTONS)) {
  $(id).addEventListener("click", (event) => {
    act();
    rest(event);
  });
}

// The next choice ties with the one before; once all are placed, the last two places become one.
function join() {
  if (order.flat().length < item.answers.length) joining = !joining && order.length > 0;
  else if (order.length > 1) order.splice(-2, 2, order.slice(-2).flat());
  mark();
}

// After a click or a tap the keys are free again; a button that was reached by Tab keeps the focus.
function rest(event) {
  if (event.detail) $("question").focus({ preventScroll: true });
}

const KEYS = {
  Enter: () => ready() && send(choice), "0": () => verdict("tie"), t: () => verdict("tie"), b: () => verdict("all_bad"),
  "=": join, Backspace: takeBack, m: asWritten, r: () => $("reason").focus(), s: () => send("skipped"), z: () => next("previous").catch(stop),
};

document.addEventListener("keydown", (event) => {
  if (!item || $("work").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("textarea, input, select")) {
    if (event.key === "Escape") $("question").focus();
    else if (event.key === "Enter" && !event.shiftKey && event.target.id === "reason") {
      event.preventDefault();
      KEYS.Enter();
    }
    return;
  }
  if (event.key === "Enter" && event.target.matches("button")) return; // it presses the button
  const place = "123456789".indexOf(event.key);
  const act = place >= 0 && place < item.answers.length ? () => pick(place) : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

$("raw").setAttribute("aria-pressed", String(localStorage.getItem("raw") === "yes"));

const THEMES = ["auto", "light", "dark"];
function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name[0].toUpperCase() + name.slice(1);
  localStorage.setItem("theme", name);
}
theme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto");
$("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3]));

async function begin() {
  if (!token) return say("Open this page by the link that you were given.");
  me = await insist("me");
  document.title = `${me.queue}: labelling`;
  $("queue").textContent = `${me.queue}, ${me.name}`;
  showProgress(me.progress);
  if (me.role !== "labeller") team(call, me, showProgress, say);
  if (me.role !== "owner") await next();
}

begin().catch(stop);
