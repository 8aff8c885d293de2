// Markdown that grows: finished blocks are drawn once, the open one again, and never for more than a fifth of the time.
// A long code block that is still open grows by its new text alone.
import { blocks, codeBlock, contextOf, elements, unmarked } from "./render.js";

const SHARE = 4; // a drawing that took 5 ms is followed by at least 20 ms without one
const CONTINUES = /^(?:[ \t]|[-*+][ \t]|\d{1,9}[.)][ \t]|>)/;

// Draw a text that grows into `element`: `update(text)` as often as wanted, `stop()` when it is whole.
export function growing(element, drawn = (draw) => draw()) {
  const view = { element, context: contextOf(), done: 0, tail: [], nodes: [], fence: null };
  let latest = "", timer = null, free = 0;

  function paint() {
    timer = null;
    const began = performance.now();
    drawn(() => advance(view, latest));
    free = performance.now() + SHARE * (performance.now() - began);
  }

  return {
    update(text) {
      latest = text;
      timer ??= setTimeout(() => requestAnimationFrame(() => timer !== null && paint()), Math.max(0, free - performance.now()));
    },
    stop() {
      clearTimeout(timer);
      timer = null;
    },
  };
}

function advance(view, text) {
  if (view.fence && !grow(view.fence, text)) view.fence = null;
  if (view.fence) return;
  const cut = lastCut(text, view.done);
  if (cut > view.done) {
    draw(view, text.slice(view.done, cut));
    view.done = cut;
    view.tail = view.nodes = [];
  }
  draw(view, text.slice(view.done));
  const last = view.tail.at(-1);
  if (last?.type === "code" && last.open && last.text.length > 2000) view.fence = openFence(view, text, last);
}

// The blocks of the part that is not finished; those that are as before keep their elements.
function draw(view, text) {
  const tail = blocks(unmarked(text));
  let same = 0;
  while (same < tail.length && same < view.tail.length && tail[same].source === view.tail[same].source) same += 1;
  for (const old of view.nodes.slice(same).flat()) old.remove();
  view.nodes = [...view.nodes.slice(0, same), ...tail.slice(same).map((block) => {
    const made = elements(block, view.context);
    view.element.append(...made);
    return made;
  })];
  view.tail = tail;
}

// The last place at which a block surely has ended: a blank line outside of code, before a line that cannot go on with it.
function lastCut(text, from) {
  let cut = from, at = from, fence = null, math = null, empty = false;
  while (at < text.length) {
    const end = text.indexOf("\n", at);
    const line = text.slice(at, end < 0 ? text.length : end);
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line);
    if (fence) {
      if (mark && mark[1][0] === fence[0] && mark[1].length >= fence.length && !line.slice(mark[0].length).trim()) fence = null;
    } else if (math) math = line.includes(math) || !line.trim() ? null : math;
    else {
      if (empty && end >= 0 && line.trim() && !CONTINUES.test(line)) cut = at;
      if (mark) fence = mark[1];
      else if (/^[ \t]*\$\$(?!.*\$\$)/.test(line)) math = "$$";
      else if (/^[ \t]*\\\[(?!.*\\\])/.test(line)) math = "\\]";
    }
    empty = !line.trim() && !fence;
    if (end < 0) break;
    at = end + 1;
  }
  return cut;
}

function openFence(view, text, block) {
  const figure = codeBlock(block.text, "");
  figure.querySelector("figcaption span").textContent = block.language || "text";
  view.nodes.at(-1)[0].replaceWith(figure);
  view.nodes[view.nodes.length - 1] = [figure];
  const code = figure.querySelector("code");
  const shown = document.createTextNode(code.textContent);
  code.replaceChildren(shown);
  return { shown, code, at: text.length, close: view.tail.at(-1).source.match(/[`~]{3,}/)[0] };
}

// Add the new part of an open code block; false as soon as a line of it may close the block.
function grow(fence, text) {
  const added = unmarked(text.slice(fence.at));
  const line = text.lastIndexOf("\n", fence.at - 1) + 1;
  const closes = new RegExp(`^ {0,3}\\${fence.close[0]}{${fence.close.length},}[ \\t]*$`, "m");
  if (closes.test(text.slice(line))) return false;
  fence.shown.appendData(added);
  fence.code.source += added;
  fence.at = text.length;
  return true;
}
