// The chat page: asks the public API, streams the answers, shows what every layer did, keeps the conversations.
// Everything a model, a document or a person says is put into the page as text, never as markup.
import { $, button, el, replace } from "./dom.js";
import { call, stream } from "./api.js";
import { blankAnswer, nextRound, take } from "./answer.js";
import { attachments } from "./files.js";
import { addTurn, choose, messagesFor, newConversation, path, roundsOf, versions } from "./conversation.js";
import { asMarkdown, save } from "./export.js";
import { readSaved } from "./saved.js";
import { browserHistory } from "./history.js";
import { composer, focusBox, write } from "./composer.js";
import { copied } from "./clipboard.js";
import { fillPicks, isBlindChosen, label, picked, showPicks } from "./picks.js";
import { locked, unlock } from "./locked.js";
import { plainWords } from "./errors.js";
import { allow, chosen, keeps, settingsDialog, theme } from "./settings.js";
import { serverHistory } from "./server_history.js";
import { sidebar } from "./sidebar.js";
import { isBlind, turnView } from "./turn.js";
import { follow, toBottom } from "./scroll.js";

const MAX_ANSWER = 2_000_000; // characters
const GO_ON = "Go on exactly where you stopped.";
const query = new URLSearchParams(location.search);
const state = { name: "", conversation: newConversation(), views: new Map(), running: null, history: browserHistory(), saving: Promise.resolve(), queue: query.getAll("q") };
const files = attachments(() => {});

// ---- turns ----

const acts = {
  label: (id) => label(state.name, id),
  runs: (turn) => state.running?.turn === turn,
  follow,
  details: query.has("details"),
  opine: (opinion) => call("POST", "/v1/feedback", opinion),
  compare: (comparison) => call("POST", "/v1/comparisons", comparison),
  async voted(turn, verdict) {
    turn.vote = verdict;
    refresh();
    await keep();
  },
  again: (turn) => ask(turn.parent, turn.question, turn.files),
  more: (turn) => ask(turn.id, GO_ON, []),
  edit: (turn, question) => ask(turn.parent, question, turn.files),
  async retry(turn) {
    if (state.running) return;
    turn.answers = turn.answers.map((answer) => (answer.error ? { ...blankAnswer(answer.model), rounds: answer.rounds } : answer));
    turn.fault = null;
    state.views.get(turn.id).show();
    await run(turn);
  },
  async decide(turn, answer, decisions) {
    if (state.running) return;
    nextRound(answer, decisions);
    state.views.get(turn.id).show();
    await run(turn);
  },
  version(turn) {
    choose(state.conversation, turn.id);
    draw();
    keep();
    state.views.get(turn.id).section.querySelector(".versions button:not(:disabled)")?.focus();
  },
};

function view(turn) {
  if (!state.views.has(turn.id)) state.views.set(turn.id, turnView(turn, acts));
  return state.views.get(turn.id);
}

async function ask(parent, question, attached) {
  if (state.running || !(question.trim() || attached.length)) return;
  const models = picked(), blind = isBlindChosen();
  if (blind && crypto.getRandomValues(new Uint8Array(1))[0] % 2) models.reverse();
  const turn = addTurn(state.conversation, parent, { question, files: attached, blind });
  turn.answers = models.map(blankAnswer);
  state.running = { turn };
  draw();
  toBottom();
  await run(turn);
}

async function run(turn) {
  const controller = new AbortController(), { conversation } = state;
  state.running = { turn, controller };
  show();
  refresh();
  keep(conversation);
  const { system, fields } = chosen();
  const open = turn.answers.map((answer, side) => [answer, view(turn).cards[side]]).filter(([answer]) => !answer.id && !answer.stopped);
  await Promise.all(open.map(([answer, card]) => one(conversation, turn, answer, card, { system, fields, signal: controller.signal })));
  if (state.running?.controller !== controller) return keep(conversation);
  state.running = null;
  follow(refresh);
  show();
  $("status").textContent = turn.answers.map((a) => (a.error ? plainWords(a.error).title : a.refusal ?? a.text)).join(" — ");
  await keep(conversation);
  if (turn.answers.some((a) => a.error?.status === 401)) unlock();
  else if (!document.activeElement || document.activeElement === document.body || document.activeElement === $("send")) focusBox();
  return next();
}

async function one(conversation, turn, answer, card, { system, fields, signal }) {
  const { messages, owners } = messagesFor(conversation, turn, answer.model, system);
  const { messages: rounds, approval } = roundsOf(answer);
  const body = { model: answer.model, messages: [...messages, ...rounds], ...fields, ...(approval ? { approval } : {}), stream: true, stream_options: { include_usage: true } };
  card.grow();
  try {
    for await (const chunk of stream("/v1/chat/completions", body, signal)) {
      take(answer, chunk);
      card.grow();
      if (answer.text.length > MAX_ANSWER) throw Object.assign(new Error("The answer is longer than this page shows."), { code: "answer_too_long" });
    }
  } catch (error) {
    if (error.name === "AbortError") answer.stopped = true;
    else {
      const { message, code, status, param, wait, id } = error;
      answer.error = { message, code, status, param, wait, id };
      const at = /^messages\[(\d+)\]/.exec(param ?? "");
      const owner = at && conversation.turns[owners[Number(at[1])]];
      if (owner) owner.fault = message;
    }
  }
  follow(() => card.settle(isBlind(turn)));
}

// ---- the page ----

function draw() {
  replace($("log"), path(state.conversation).map((turn) => view(turn).section));
  refresh();
  show();
}

function refresh() {
  for (const turn of path(state.conversation)) view(turn).refresh(versions(state.conversation, turn));
}

function show() {
  const any = state.conversation.last !== null, running = Boolean(state.running);
  $("welcome").hidden = any;
  document.body.classList.toggle("running", running);
  $("send").setAttribute("aria-label", running ? "Stop" : "Send");
  $("send").title = running ? "Stop (Esc)" : "Send (Enter)";
  for (const id of ["link", "fresh", "save-text", "save-data"]) $(id).disabled = !any;
  document.title = state.conversation.title && any ? `${state.conversation.title} · ${state.name}` : state.name || "Demeanor";
}

function submit() {
  if (state.running) return stop();
  const question = $("message").value, last = state.conversation.last;
  if (!question.trim() && !files.any()) return undefined;
  write("");
  return ask(last, question, files.takeAll());
}

function stop() {
  state.running?.controller?.abort();
}

// Put the next question of the link into the box; the person sends it.
function next() {
  if (state.queue.length && !$("message").value) write(state.queue.shift());
}

function begin(conversation, isKept = false) {
  stop();
  state.conversation = conversation;
  state.views.clear();
  for (const turn of Object.values(conversation.turns)) for (const answer of turn.answers) if (!answer.id && !answer.error) answer.stopped = true;
  history.replaceState(null, "", isKept ? `${location.pathname}${location.search}#${conversation.id}` : `${location.pathname}${location.search}`);
  draw();
  list.show();
  toBottom();
  focusBox();
}

// ---- kept conversations ----

async function keep(conversation = state.conversation) {
  if (!conversation.last || !keeps()) return;
  conversation.updated = Date.now();
  if (conversation === state.conversation) history.replaceState(null, "", `${location.pathname}${location.search}#${conversation.id}`);
  const before = state.saving;
  try {
    await (state.saving = before.then(async () => (await state.history).put(conversation)).catch((error) => { state.saving = Promise.resolve(); throw error; }));
    $("kept-note").textContent = "";
  } catch (error) {
    $("kept-note").textContent = `This conversation could not be kept: ${error.message}`;
  }
  await list.show();
}

const list = sidebar({
  history: () => state.history,
  current: () => state.conversation.id,
  async open(id) {
    const found = await (await state.history).get(id);
    if (found) begin(found, true);
    if (matchMedia("(max-width: 52rem)").matches) drawer(false);
  },
  renamed: ({ id, title }) => { if (id === state.conversation.id) { state.conversation.title = title; show(); } },
  removed: (id) => { if (id === state.conversation.id) begin(newConversation()); },
});

function drawer(open) {
  document.body.classList.toggle("drawer", open);
  $("history-open").setAttribute("aria-expanded", String(open));
  $("history").inert = !open;
  localStorage.setItem("drawer", open ? "open" : "closed");
  if (open) list.show();
}

// ---- the start ----

async function load() {
  const { data, demeanor } = await call("GET", "/v1/models");
  state.name = demeanor.name;
  $("name").textContent = demeanor.name;
  fillPicks(state.name, data, (query.get("models") ?? "").split(",").filter(Boolean));
  allow(demeanor.page.settings);
  if (demeanor.page.history) state.history = serverHistory;
  replace($("examples"), demeanor.examples.map((text) => button(text, () => ask(null, text, []))));
  const kept = location.hash.length > 1 && !state.conversation.last ? await (await state.history).get(decodeURIComponent(location.hash.slice(1))) : null;
  if (kept) state.queue = [];
  if (kept) begin(kept, true);
  else draw();
  next();
  list.show();
}

async function start() {
  theme();
  try {
    await load();
    replace($("problem"));
  } catch (error) {
    if (error.status === 401) return unlock(sessionStorage.getItem("key") ? "That key is not known here." : "");
    const { title, advice, detail } = plainWords(error);
    replace($("problem"), el("div", { class: "problem", role: "alert" }, el("b", {}, title), ` ${advice} `, button("Try again", start, { class: "retry" }), el("small", {}, detail)));
  }
  return focusBox();
}

composer({ submit, stop, running: () => Boolean(state.running), last: () => path(state.conversation).at(-1)?.question });
settingsDialog(focusBox);
locked(start);
for (const id of ["first", "second", "blind"]) $(id).addEventListener("change", showPicks);
$("fresh").addEventListener("click", () => begin(newConversation()));
$("history-open").addEventListener("click", () => drawer(!document.body.classList.contains("drawer")));
$("history-close").addEventListener("click", () => { drawer(false); $("history-open").focus(); });
$("link").addEventListener("click", () => copied($("link"), () => {
  const link = new URLSearchParams(path(state.conversation).map((turn) => ["q", turn.question]));
  link.set("models", picked().join(","));
  return `${location.origin}/?${link}`;
}));
$("save-text").addEventListener("click", () => save(`${state.conversation.title}.md`, asMarkdown(state.conversation), "text/markdown"));
$("save-data").addEventListener("click", () => save(`${state.conversation.title}.json`, JSON.stringify(state.conversation, null, 1), "application/json"));
$("open-data").addEventListener("click", () => $("saved").click());
$("saved").addEventListener("change", async () => {
  const [file] = $("saved").files;
  $("saved").value = "";
  try {
    begin(await readSaved(file));
    await keep();
  } catch (error) {
    $("history-where").textContent = error.message;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) { event.preventDefault(); begin(newConversation()); }
  if (event.key === "?" && !event.target.closest("input, textarea, select, dialog") && !document.querySelector("dialog[open]")) { event.preventDefault(); $("keys").showModal(); }
});
for (const id of ["passage", "keys"]) $(id).addEventListener("close", focusBox);
$("keys-open").addEventListener("click", () => $("keys").showModal());
drawer(localStorage.getItem("drawer") === "open" && !matchMedia("(max-width: 52rem)").matches);
start();
