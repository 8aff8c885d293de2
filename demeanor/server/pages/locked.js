// The dialog that asks for an API key; the key stays in this tab.
import { $ } from "./dom.js";

export function unlock(words = "") {
  $("locked-note").textContent = words;
  if (!$("locked").open) $("locked").showModal();
  $("key").focus();
}

export function locked(opened) {
  $("locked").addEventListener("close", () => {
    if (!$("key").value.trim()) return;
    sessionStorage.setItem("key", $("key").value.trim());
    $("key").value = "";
    opened();
  });
}
