// Conversations kept on the server for the user of this key: list, get, put, remove, as history.js has them.
import { call } from "./api.js";
import { wordsOf } from "./history.js";

const MAX_BYTES = 900_000;
const MAX_WORDS = 200_000;

export const serverHistory = {
  where: "on this server, for your key",
  async list(query) {
    const { data } = await call("GET", `/v1/history?${new URLSearchParams({ query, limit: "500" })}`);
    return data.map(({ id, title, created, updated }) => ({ id, title, created: 1000 * created, updated: 1000 * updated }));
  },
  async get(id) {
    try {
      return await call("GET", `/v1/history/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  },
  put(conversation) {
    const entry = { title: conversation.title.slice(0, 200), words: wordsOf(conversation).slice(0, MAX_WORDS), conversation };
    return call("PUT", `/v1/history/${encodeURIComponent(conversation.id)}`, fitting(entry));
  },
  remove: (id) => call("DELETE", `/v1/history/${encodeURIComponent(id)}`),
};

// What is too large for one request is kept without what the layers did.
function fitting(entry) {
  if (new Blob([JSON.stringify(entry)]).size <= MAX_BYTES) return entry;
  const turns = Object.entries(entry.conversation.turns).map(([id, turn]) => [id, { ...turn, answers: turn.answers.map((answer) => ({ ...answer, trace: null })) }]);
  return { ...entry, words: "", conversation: { ...entry.conversation, turns: Object.fromEntries(turns) } };
}
