// A conversation as a tree of turns: an edited or regenerated turn stands beside the earlier one, with the same parent. No DOM, no network.
// A turn is {id, parent, at, question, files, answers, blind, vote}; an answer holds what the server sent.

const newId = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, turns: {}, last: null };
}

export function addTurn(conversation, parent, { question, files = [], blind = false }) {
  const turn = { id: newId(), parent, at: Date.now(), number: Object.keys(conversation.turns).length, question, files, answers: [], blind, vote: null, next: null };
  conversation.turns[turn.id] = turn;
  conversation.title ||= titleOf(question, files);
  choose(conversation, turn.id);
  return turn;
}

export function titleOf(question, files = []) {
  const line = question.trim().split("\n")[0] || files[0]?.name || "New chat";
  return Array.from(line).slice(0, 60).join("");
}

// The turns that are shown, first to last.
export function path(conversation) {
  const found = [];
  for (let turn = conversation.turns[conversation.last]; turn; turn = conversation.turns[turn.parent]) found.unshift(turn);
  return found;
}

// The versions of a turn, oldest first.
export function versions(conversation, turn) {
  return Object.values(conversation.turns).filter((other) => other.parent === turn.parent).sort((a, b) => a.number - b.number);
}

// Show this turn and what was last shown after it.
export function choose(conversation, id) {
  for (let turn = conversation.turns[id]; turn?.parent; turn = conversation.turns[turn.parent]) conversation.turns[turn.parent].next = turn.id;
  let last = conversation.turns[id];
  while (last?.next && conversation.turns[last.next]) last = conversation.turns[last.next];
  conversation.last = last?.id ?? null;
}

export const isRefused = (answer) => answer.refusal !== null && answer.refusal !== undefined;

// All that an answer says, over the rounds between which a person allowed tools to run.
export const saidBy = (answer) => [...(answer.rounds ?? []).map((round) => round.text), answer.text].filter(Boolean).join("\n\n");

// What a model is sent for a turn: {messages, owners}; `owners[i]` is the turn of message i, null for the system prompt.
// Refused turns and turns without an answer of their own are left out. A model reads its own earlier answers where it has some.
export function messagesFor(conversation, turn, model, system) {
  const messages = [], owners = [];
  const say = (role, content, owner) => { messages.push({ role, content }); owners.push(owner); };
  if (system) say("system", system, null);
  const before = path({ ...conversation, last: turn.parent });
  for (const earlier of before) {
    const answer = earlier.answers.find((a) => a.model === model) ?? earlier.answers.find((a) => saidBy(a) && !isRefused(a)) ?? earlier.answers[0];
    if (!answer || isRefused(answer) || !saidBy(answer)) continue;
    say("user", content(earlier), earlier.id);
    say("assistant", saidBy(answer), earlier.id);
  }
  say("user", content(turn), turn.id);
  return { messages, owners };
}

// The rounds of an answer as the API wants them back, with the decision on the last.
export function roundsOf(answer) {
  const rounds = answer.rounds ?? [];
  const messages = rounds.map(({ text, calls }) => ({ role: "assistant", content: text || null, tool_calls: calls.map(({ id, type, function: f }) => ({ id, type, function: f })) }));
  const last = rounds.at(-1);
  return { messages, ...(last ? { approval: { token: last.token, decisions: last.decisions } } : {}) };
}

// A question with its files, each between fences that its own text cannot close.
export function content({ question, files }) {
  const parts = files.map(({ name, text }) => {
    const longest = (text.match(/`{3,}/g) ?? []).reduce((most, run) => Math.max(most, run.length), 2);
    const fence = "`".repeat(longest + 1);
    return `File "${name.replace(/["\n\r]/g, " ")}":\n${fence}\n${text}\n${fence}`;
  });
  return [...parts, question].filter(Boolean).join("\n\n");
}
