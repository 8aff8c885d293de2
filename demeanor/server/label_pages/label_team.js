// What adjudicators and owners see beside the work: agreement as it stands, and for owners the links.
import { el, replace } from "./dom.js";

const $ = (id) => document.getElementById(id);
const REFRESH_MS = 5000;

export function team(call, me, showProgress, say) {
  $("team").hidden = false;

  async function refresh() {
    try {
      const found = await call("agreement");
      showProgress(found.progress);
      replace($("measured"), coefficients(found.agreement), people(found.agreement));
    } catch (error) {
      say(error.message);
    }
    setTimeout(refresh, REFRESH_MS);
  }

  async function links() {
    const { invitations } = await call("invitations");
    replace($("invited"), table("People with a link", ["name", "role", "until", ""], invitations.map((one) => [
      one.name, one.role, one.revoked ? "revoked" : one.expires ?? "no end",
      one.revoked ? "" : button(`Revoke ${one.name}`, async () => {
        await call("revocations", { name: one.name });
        await links();
      }),
    ])));
  }

  function button(name, act) {
    const made = el("button", { type: "button" }, name);
    made.addEventListener("click", () => act().catch((error) => say(error.message)));
    return made;
  }

  refresh();
  if (me.role !== "owner") return;
  $("links").hidden = false;
  links().catch((error) => say(error.message));
  $("invite").addEventListener("submit", async (event) => {
    event.preventDefault();
    const hours = $("hours").valueAsNumber;
    try {
      const made = await call("invitations", { name: $("name").value, role: $("role").value, ...(hours > 0 ? { hours } : {}) });
      $("made").textContent = `The link of ${made.name} (it is shown once): ${location.origin}/label#${made.token}`;
      $("name").value = "";
      await links();
    } catch (error) {
      say(error.message);
    }
  });
}

function table(caption, heads, rows) {
  return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption }, el("table", {}, el("caption", {}, caption),
    el("thead", {}, el("tr", {}, heads.map((h) => el(h ? "th" : "td", h ? { scope: "col" } : {}, h)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell)))))));
}

function coefficients(found) {
  return table("Krippendorff's alpha: 1 is perfect, 0 as by chance; the interval resamples items", ["level", "alpha", "95% interval", "labels"],
    ["nominal", "ordinal"].map((level) => {
      const it = found[level];
      return [level, number(it.value), it.low == null ? "-" : `${number(it.low)} to ${number(it.high)}`, String(it.ratings)];
    }));
}

function people(found) {
  return table("Each labeller", ["labeller", "labels", "as the rest say", "gold checks right", "the first shown is better", "median s"],
    found.labellers.map((one) => [one.labeller, String(one.labels), share(one.with_rest), share(one.gold),
      one.first ? `${share(one.first)}${one.first_p < 0.05 ? " (follows the place)" : ""}` : "-", one.median_s == null ? "-" : one.median_s.toFixed(1)]));
}

function number(value) {
  return value == null ? "-" : value.toFixed(3);
}

function share(it) {
  if (!it) return "-";
  const percent = (x) => `${Math.round(100 * x)}%`;
  return it.low == null ? percent(it.value) : `${percent(it.value)} (${percent(it.low)} to ${percent(it.high)})`;
}
