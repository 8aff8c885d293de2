// What went wrong in plain words, and what a person can do about it.

const BY_CODE = {
  unreachable: ["The server cannot be reached.", "Check that it is running and that you are online. Your message is kept."],
  broken_off: ["The connection broke off before the answer was whole.", "What came is shown. You can try again."],
  answer_too_long: ["The answer is longer than this page shows.", "It was stopped there. Set a limit under Settings, or use the API."],
  context_length_exceeded: ["The conversation is too long for this model.", "Shorten the message or its files, or start a new chat."],
  model_not_found: ["This variant is not offered here.", "Choose another one above."],
  rate_limit_exceeded: ["You have reached a limit.", ""],
  server_busy: ["The server is busy.", "Try again in a moment."],
  deadline_exceeded: ["The answer took too long and was stopped by the server.", "Ask for less, or try again."],
  upstream_unavailable: ["The model's own server cannot be reached.", "Try again in a moment. If it stays so, tell the operator."],
  upstream_timeout: ["The model's own server did not answer in time.", "Try again in a moment."],
  stack_changed: ["The assistant has been changed while it runs.", "The operator has to reload it."],
  body_too_large: ["The message is too large for this server.", "Remove a file or shorten the text."],
  setting_not_allowed: ["The operator does not allow this setting.", "Clear it under Settings and try again."],
  operators_only: ["These pages answer this machine only.", "Serve with keys, and make one with the scope operator."],
  insufficient_scope: ["Your key may not do this.", "Ask the operator for a key that may."],
  database_unavailable: ["The server cannot record this now.", "Try again in a moment."],
};
const BY_STATUS = {
  401: ["The key is missing or wrong.", "Enter a key of this server."],
  403: ["Your key may not do this.", "Ask the operator for a key that may."],
  404: ["This is not on the server.", ""],
  408: ["The message took too long to arrive.", "Try again."],
  413: ["The message is too large for this server.", "Remove a file or shorten the text."],
  429: ["Too many requests.", ""],
  500: ["Something failed on the server.", "Try again. If it stays so, give the operator the number below."],
  502: ["The model's own server failed.", "Try again in a moment."],
  503: ["The server cannot answer now.", "Try again in a moment."],
  504: ["The answer took too long.", "Try again."],
};

// {title, advice, detail} of an error of api.js.
export function plainWords(error) {
  const [title, advice] = BY_CODE[error.code] ?? BY_STATUS[error.status] ?? [error.message || "Something went wrong.", ""];
  const wait = error.wait ? `Try again in ${error.wait < 90 ? `${error.wait} seconds` : `${Math.round(error.wait / 60)} minutes`}.` : "";
  const said = error.message && error.message !== title ? error.message : "";
  return { title, advice: wait || advice, detail: [said, error.code, error.id].filter(Boolean).join(" · ") };
}
