// The server's API as the pages use it: requests with the key of this tab, errors with what the server says about them.
import { events } from "./sse.js";

export function headers() {
  const key = sessionStorage.getItem("key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const { message, code, param } = body.error ?? {};
  const wait = Number(response.headers.get("retry-after")) || null;
  return Object.assign(new Error(message ?? `The server answered with HTTP ${response.status}.`), {
    status: response.status, code, param, wait, id: response.headers.get("x-request-id"),
  });
}

async function sent(path, options) {
  try {
    return await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("The server cannot be reached."), { code: "unreachable" });
  }
}

// The JSON that the server answers; `body` is sent as JSON.
export async function call(method, path, body, signal) {
  const response = await sent(path, { method, signal, ...(body === undefined ? {} : { body: JSON.stringify(body) }) });
  if (!response.ok) throw await failure(response);
  return response.status === 204 ? null : response.json();
}

// The chunks of a streamed answer.
export async function* stream(path, body, signal) {
  const response = await sent(path, { method: "POST", signal, body: JSON.stringify(body) });
  if (!response.ok) throw await failure(response);
  const id = response.headers.get("x-request-id");
  try {
    for await (const chunk of events(response)) {
      if (chunk.error) throw Object.assign(new Error(chunk.error.message), { code: chunk.error.code, param: chunk.error.param, id });
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error.code) throw error;
    throw Object.assign(new Error("The answer broke off."), { code: "broken_off", id });
  }
}
