// Text files as context of the next question: chosen, dropped or pasted, bounded, shown as chips.
import { $, button, el, plural, replace } from "./dom.js";

const MAX_FILES = 10;
export const MAX_FILE_BYTES = 200_000;
const MAX_TOTAL_BYTES = 600_000;

export function attachments(changed) {
  let files = [];

  function say(words) {
    $("file-note").textContent = words;
  }

  function show() {
    replace($("chips"), files.map((file) => el("li", {}, el("bdi", {}, file.name), ` ${plural(file.text.length, "character")} `,
      button("×", () => { files = files.filter((other) => other !== file); show(); $("message").focus(); }, { "aria-label": `Remove ${file.name}` }))));
    $("chips").hidden = files.length === 0;
    changed();
  }

  async function add(chosen) {
    say("");
    for (const file of chosen) {
      const problem = await take(file);
      if (problem) say(problem);
    }
    show();
  }

  async function take(file) {
    const name = file.name || "text.txt";
    const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
    if (files.length === MAX_FILES) return `At most ${MAX_FILES} files go with a question.`;
    if (file.size > MAX_FILE_BYTES) return `${name} is too large: ${Math.ceil(file.size / 1000)} kB, at most ${MAX_FILE_BYTES / 1000} kB.`;
    if (total + file.size > MAX_TOTAL_BYTES) return `${name} is left out: all files together may have ${MAX_TOTAL_BYTES / 1000} kB.`;
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\u0000")) throw new TypeError();
      files.push({ name: name.slice(0, 120), text, bytes: file.size });
    } catch {
      return `${name} is not a text file (UTF-8).`;
    }
    return "";
  }

  $("file").addEventListener("change", async () => { await add($("file").files); $("file").value = ""; $("message").focus(); });
  $("attach").addEventListener("click", () => $("file").click());
  const over = (event) => { if (event.dataTransfer?.types.includes("Files")) { event.preventDefault(); document.body.classList.add("dropping"); } };
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
  $("message").addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  });

  return {
    any: () => files.length > 0,
    takeAll() {
      const taken = files.map(({ name, text }) => ({ name, text }));
      files = [];
      say("");
      show();
      return taken;
    },
    put(given) {
      files = given.map((file) => ({ ...file, bytes: file.text.length }));
      show();
    },
  };
}
