// A line of hits by threshold, and one of the hits that people marked as wrong: an SVG without styles of its own.
import { el } from "../dom.js";
import { number } from "./format.js";

const WIDTH = 640, HEIGHT = 180, LEFT = 44, RIGHT = 10, TOP = 10, BOTTOM = 28;

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function curveChart(points, title) {
  const low = points[0].threshold, high = points.at(-1).threshold, most = Math.max(1, ...points.map((p) => p.hits));
  const x = (t) => LEFT + (high > low ? (t - low) / (high - low) : 0.5) * (WIDTH - LEFT - RIGHT);
  const y = (n) => TOP + (1 - n / most) * (HEIGHT - TOP - BOTTOM);
  const line = (value, kind) => svg("polyline", { class: kind, points: points.map((p) => `${x(p.threshold).toFixed(1)},${y(value(p)).toFixed(1)}`).join(" ") });
  const dots = (value, kind) => points.map((p) => svg("circle", { class: kind, cx: x(p.threshold).toFixed(1), cy: y(value(p)).toFixed(1), r: "2.5" }));
  const label = (text, at, anchor) => svg("text", { x: String(at[0]), y: String(at[1]), "text-anchor": anchor }, text);
  const wrong = (p) => p.false_positives, hits = (p) => p.hits;
  return el("figure", { class: "chart" },
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title },
      svg("line", { class: "axis", x1: String(LEFT), y1: String(y(0)), x2: String(WIDTH - RIGHT), y2: String(y(0)) }),
      label(String(most), [LEFT - 6, TOP + 8], "end"), label("0", [LEFT - 6, y(0) + 4], "end"),
      label(number(low), [LEFT, HEIGHT - 8], "start"), label(number(high), [WIDTH - RIGHT, HEIGHT - 8], "end"),
      line(hits, "hits"), ...dots(hits, "hits"), line(wrong, "wrong"), ...dots(wrong, "wrong")),
    el("figcaption", {}, el("span", { class: "key hits" }, "hits kept"), el("span", { class: "key wrong" }, "of them marked wrong")));
}
