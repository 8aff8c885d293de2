// A/B experiments on live traffic: arms, users, means with intervals, the always-valid verdict.
import { button, el } from "../dom.js";
import { call } from "../api.js";
import { interval, number, when } from "./format.js";
import { table } from "./table.js";

export async function experimentsPage() {
  const { experiments, notes } = await call("GET", "/v1/demeanor/traffic");
  if (!experiments.length) return [...warnings(notes), el("p", {}, "This stack has had no experiments.")];
  return [...warnings(notes), ...experiments.reverse().map(experiment)];
}

export const warnings = (notes) => notes.map((note) => el("p", { class: "problem" }, note));

function experiment({ name, id, state, started, stopped, reason, result }) {
  const head = ["Arm", "Variant", "Share", "Users", "Turns", "Scored", "Mean (interval)"];
  return el("section", { "aria-label": `Experiment ${name}` },
    el("h2", {}, name, " ", el("span", { class: state === "running" ? "chip good" : "chip quiet" }, state)),
    el("p", { class: "soft" }, `Score: ${result.score} · alpha ${number(result.alpha)} · since ${when(started)}${stopped ? `, until ${when(stopped)}` : ""}${reason ? ` (${reason})` : ""} · ${id.slice(0, 12)}`),
    result.warnings.map((warning) => el("p", { class: "problem" }, warning)),
    table(`Arms of ${name}`, head, result.arms.map((arm) => [arm.name, el("bdi", {}, arm.model), `${(100 * arm.share).toFixed(0)}%`, String(arm.users), String(arm.turns), String(arm.scored), interval(arm.mean)]), { numeric: [2, 3, 4, 5, 6] }).box,
    el("ul", {}, result.contrasts.map((contrast) => el("li", {}, el("b", {}, contrast.arm), ` less ${result.arms[0].name}: ${interval(contrast.difference)}. `, el("b", {}, verdict(contrast)), ` (e-value ${number(contrast.e_value)})`))),
    state === "running" && stopButton(name));
}

function verdict({ verdict: found, after_users: after }) {
  return `${found.replaceAll("_", " ")}${after ? ` since ${after} users` : ""}`;
}

function stopButton(name) {
  const stop = button("Stop the experiment", async () => {
    if (!stop.dataset.sure) {
      stop.dataset.sure = "yes";
      stop.textContent = "Press again to stop it for everybody";
      return;
    }
    try {
      await call("POST", `/v1/demeanor/experiments/${encodeURIComponent(name)}/stop`, { reason: "stopped on the operators' page" });
      location.reload();
    } catch (error) {
      stop.textContent = error.message;
    }
  }, { class: "retry" });
  return stop;
}
