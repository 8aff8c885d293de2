// Settings of the person at this browser: theme, system prompt, temperature, length; each sent only where the operator allows it.
import { $ } from "./dom.js";

const FIELDS = { system_prompt: "system", sampling: "temperature", max_tokens: "length" };
const kept = () => { try { return JSON.parse(localStorage.getItem("settings") ?? "{}"); } catch { return {}; } };

let allowed = Object.keys(FIELDS);

export function allow(names) {
  allowed = names;
  for (const [name, id] of Object.entries(FIELDS)) {
    $(id).disabled = !names.includes(name);
    $(id).closest("label").classList.toggle("off", !names.includes(name));
  }
  $("settings-note").textContent = names.length === Object.keys(FIELDS).length ? "" : "The operator of this server has fixed the settings that are grey.";
}

// What the settings add to a request: {system, fields}.
export function chosen() {
  const values = kept(), fields = {};
  if (allowed.includes("sampling") && values.temperature !== undefined) fields.temperature = values.temperature;
  if (allowed.includes("max_tokens") && values.max_tokens !== undefined) fields.max_tokens = values.max_tokens;
  return { system: allowed.includes("system_prompt") ? values.system_prompt ?? "" : "", fields };
}

// Whether this person wants conversations to be kept.
export const keeps = () => kept().keep !== false;

export function theme(next) {
  if (next) localStorage.setItem("theme", next);
  const chosenTheme = next ?? new URLSearchParams(location.search).get("theme") ?? localStorage.getItem("theme") ?? "auto";
  document.documentElement.dataset.theme = chosenTheme;
  if ($("theme")) $("theme").value = ["light", "dark"].includes(chosenTheme) ? chosenTheme : "auto";
}

export function settingsDialog(closed) {
  $("settings-open").addEventListener("click", () => {
    const values = kept();
    $("system").value = values.system_prompt ?? "";
    $("temperature").value = values.temperature ?? "";
    $("length").value = values.max_tokens ?? "";
    $("keep").checked = values.keep !== false;
    $("settings").showModal();
  });
  $("theme").addEventListener("change", () => theme($("theme").value));
  const store = () => {
    const values = {}, temperature = $("temperature").valueAsNumber, length = $("length").valueAsNumber;
    if ($("system").value.trim()) values.system_prompt = $("system").value.trim();
    if (temperature >= 0 && temperature <= 2) values.temperature = temperature;
    if (length >= 1) values.max_tokens = Math.floor(length);
    if (!$("keep").checked) values.keep = false;
    localStorage.setItem("settings", JSON.stringify(values));
  };
  $("settings").querySelector("form").addEventListener("submit", store);
  $("settings").addEventListener("close", () => { store(); closed(); });
}
