// Conversations kept in this browser (IndexedDB): list, get, put, remove. Where the browser keeps nothing, they live as long as the page.

import { saidBy } from "./conversation.js";

const NAME = "demeanor", STORE = "conversations";

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

const summary = ({ id, title, updated, created }) => ({ id, title, updated, created });

// The words of a conversation, for searching.
export function wordsOf({ title, turns }) {
  return [title, ...Object.values(turns).flatMap((turn) => [turn.question, ...turn.answers.map((answer) => answer.refusal ?? saidBy(answer))])].join("\n").toLowerCase();
}

export async function browserHistory() {
  let database;
  try {
    database = await opened();
  } catch {
    return memoryHistory();
  }
  const store = (mode) => database.transaction(STORE, mode).objectStore(STORE);
  return {
    where: "in this browser",
    async list(query) {
      const all = await done(store("readonly").getAll());
      return all.filter((kept) => !query || wordsOf(kept).includes(query.toLowerCase())).sort((a, b) => b.updated - a.updated).map(summary);
    },
    get: (id) => done(store("readonly").get(id)),
    put: (conversation) => done(store("readwrite").put(JSON.parse(JSON.stringify(conversation)))),
    remove: (id) => done(store("readwrite").delete(id)),
  };
}

function memoryHistory() {
  const kept = new Map();
  return {
    where: "until this page is closed",
    list: async (query) => [...kept.values()].filter((c) => !query || wordsOf(c).includes(query.toLowerCase())).sort((a, b) => b.updated - a.updated).map(summary),
    get: async (id) => structuredClone(kept.get(id)),
    put: async (conversation) => { kept.set(conversation.id, structuredClone(conversation)); },
    remove: async (id) => { kept.delete(id); },
  };
}
