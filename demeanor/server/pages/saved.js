// A conversation that was saved as JSON, read again: only fields that are known, of their types, within bounds, under new ids.
import { newConversation } from "./conversation.js";

const MAX_BYTES = 5_000_000;
const MAX_TURNS = 2000;

const text = (value, most = 1_000_000) => (typeof value === "string" ? value.slice(0, most) : "");
const list = (value, most) => (Array.isArray(value) ? value.slice(0, most) : []);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

export async function readSaved(file) {
  const wrong = new Error("This is not a conversation that this page saved.");
  if (!file || file.size > MAX_BYTES) throw wrong;
  let value;
  try {
    value = JSON.parse(await file.text());
  } catch {
    throw wrong;
  }
  if (!isObject(value) || !isObject(value.turns)) throw wrong;
  const made = newConversation();
  const turns = Object.values(value.turns).filter(isObject).slice(0, MAX_TURNS).sort((a, b) => (Number(a.number) || 0) - (Number(b.number) || 0));
  const ids = new Map(turns.map((turn, i) => [text(turn.id), `${made.id.slice(0, 8)}-${i}`]));
  for (const [number, turn] of turns.entries()) {
    const id = ids.get(text(turn.id)), parent = ids.get(text(turn.parent)) ?? null;
    if (!id || made.turns[id] || (parent !== null && !made.turns[parent])) continue; // parents come first, so there is no circle
    made.turns[id] = {
      id, parent, number, at: Number(turn.at) || made.created, question: text(turn.question), next: null, blind: turn.blind === true, vote: text(turn.vote, 20) || null,
      files: list(turn.files, 10).filter(isObject).map((f) => ({ name: text(f.name, 120), text: text(f.text) })), answers: list(turn.answers, 2).filter(isObject).map(answer),
    };
    made.last = id;
    if (parent) made.turns[parent].next = id;
  }
  if (made.last === null) throw wrong;
  made.title = text(value.title, 200);
  return made;
}

// What layers did is not read back: a file could claim anything about it.
function answer(given) {
  return {
    model: text(given.model, 512), id: text(given.id, 256) || null, text: text(given.text), refusal: given.refusal === null ? null : text(given.refusal) || null,
    rounds: [], calls: [], annotations: [], trace: null, usage: null, error: null, stopped: given.stopped === true,
  };
}
