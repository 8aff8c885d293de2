// A chapter's buttons: begin the experiment and follow it, check the exercise, compare labels. Texts are set as text, never as markup.
const $ = (id) => document.getElementById(id);
const chapter = document.querySelector(".mine")?.dataset.chapter;

async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error?.message ?? `HTTP ${response.status}`);
  return found;
}

function number(id) {
  const text = $(id).value.replace("%", "").replace("−", "-").replace(",", ".").trim();
  return text === "" ? null : Number(text);
}

async function follow() {
  const { state, said } = await (await fetch(`/tour/${chapter}/state`)).json();
  $("said").hidden = state === "idle" || state === "done";
  $("said").textContent = said || "starting ...";
  $("run").disabled = state === "running";
  if (state === "running") setTimeout(follow, 1000);
  if (state === "done" && $("run").dataset.began) location.reload();
}

async function run() {
  const guess = number("guess");
  if (guess !== null && !Number.isFinite(guess)) { $("said").hidden = false; $("said").textContent = "Write a number, or leave the guess empty."; return; }
  try {
    await post(`/tour/${chapter}/run`, guess === null ? {} : { guess });
    $("run").dataset.began = "yes";
    await follow();
  } catch (error) {
    $("said").hidden = false;
    $("said").textContent = error.message;
  }
}

async function check() {
  const answer = number("answer");
  if (answer === null || !Number.isFinite(answer)) { $("verdict").textContent = "Write a number."; return; }
  try {
    const { right, why } = await post(`/tour/${chapter}/answer`, { answer });
    $("verdict").textContent = `${right ? "Right" : "Not yet"}: ${why}.`;
  } catch (error) {
    $("verdict").textContent = error.message;
  }
}

async function label() {
  const labels = [...document.querySelectorAll("#pairs fieldset")].map((pair) => pair.querySelector("input:checked")?.value ?? "");
  if (labels.includes("")) { $("agreed").textContent = "Choose an answer of every pair."; return; }
  try {
    $("agreed").textContent = (await post("/tour/label", { labels })).said;
  } catch (error) {
    $("agreed").textContent = error.message;
  }
}

if (chapter) {
  $("run").addEventListener("click", run);
  $("check").addEventListener("click", check);
  $("answer").addEventListener("keydown", (event) => { if (event.key === "Enter") check(); });
  $("label")?.addEventListener("click", label);
  follow();
}
