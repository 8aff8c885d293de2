// The list of conversations: open, search, rename, delete, export.
import { $, button, el, replace } from "./dom.js";

// `acts`: {history, current, open, renamed, removed}; gives {show}.
export function sidebar(acts) {
  const search = $("history-search"), list = $("history-list");

  async function show() {
    let found = [];
    try {
      const history = await acts.history();
      found = await history.list(search.value.trim());
      $("history-where").textContent = `Kept ${history.where}.`;
    } catch (error) {
      $("history-where").textContent = error.message;
    }
    replace(list, found.map(row), !found.length && el("li", { class: "soft" }, search.value.trim() ? "Nothing found." : "No conversations yet."));
  }

  function row(kept) {
    const open = button(kept.title || "New chat", () => acts.open(kept.id), { class: "open", dir: "auto", "aria-current": kept.id === acts.current() ? "true" : null, title: new Date(kept.updated).toLocaleString() });
    const item = el("li", {}, open,
      button("Rename", () => rename(item, kept), { class: "act", "aria-label": `Rename ${kept.title}` }),
      button("Delete", (event) => remove(event.currentTarget, kept), { class: "act", "aria-label": `Delete ${kept.title}` }));
    return item;
  }

  function rename(item, kept) {
    const box = el("input", { type: "text", maxlength: "200", "aria-label": "New title" });
    box.value = kept.title;
    const form = el("form", { class: "rename" }, box, el("button", { class: "act" }, "Save"));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const history = await acts.history();
      const conversation = await history.get(kept.id);
      conversation.title = box.value.trim() || kept.title;
      await history.put(conversation);
      acts.renamed(conversation);
      await show();
    });
    box.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.stopPropagation(); show(); } });
    replace(item, form);
    box.select();
    box.focus();
  }

  // The first press asks, the second deletes.
  async function remove(pressed, kept) {
    if (pressed.dataset.sure) {
      await (await acts.history()).remove(kept.id);
      acts.removed(kept.id);
      await show();
      (list.querySelector("button") ?? search).focus();
      return;
    }
    pressed.dataset.sure = "yes";
    pressed.textContent = "Sure?";
    pressed.setAttribute("aria-label", `Press again to delete ${kept.title}`);
    setTimeout(() => { if (pressed.isConnected) { delete pressed.dataset.sure; pressed.textContent = "Delete"; } }, 4000);
  }

  let waiting = null;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 150); });
  return { show };
}
