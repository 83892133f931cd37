// Every tensor: the tree of parts, and of one of them value, gradient, shape and lines of code.

import { call } from "./backend.js";
import { element, set, short, signed } from "./charts.js";
import { link, state } from "./lab.js";
import { words } from "./words.js";

const $ = id => document.getElementById(id);

export function showParts({ reading, part: chosen }) {
  const key = JSON.stringify([reading.parts.map(each => each.name), document.documentElement.lang]);
  const text = each => `${each.shape.join(" × ") || "()"}`;
  if ($("parts").dataset.key !== key) {
    $("parts").dataset.key = key;
    $("parts").replaceChildren(...reading.parts.map(each => element("button", {
      class: `part depth-${Math.min(4, each.depth)}`, "data-part": each.name, onclick: () => showPart(each.name, "y"),
    }, element("span", {}, each.name || words().theModel), element("span", { class: "note" }, `${each.kind} ${text(each)}`))));
  }
  for (const each of $("parts").children) set(each, "aria-pressed", each.dataset.part === chosen?.name);
}

export async function showPart(name, which) {
  const asked = { name, which };
  state.part = asked;
  let found;
  try {
    found = await call("tensor", { reading: state.reading.reading, name, which });
  } catch (error) {
    state.part = null;
    $("tensor").replaceChildren(element("p", { class: "note" }, error.message));
    return;
  }
  if (state.part !== asked) return; // another one was pressed meanwhile
  showParts(state);
  const { value, gradient, lines } = found;
  const row = (name, ...values) => element("tr", {}, element("th", { scope: "row" }, name), ...values.map(each => element("td", {}, each)));
  const numbers = (name, of) => row(name, short(of(value)), gradient ? short(of(gradient)) : "–");
  const cell = element("p", { class: "number", id: "cell", role: "status" }, words().cellHelp);
  const derivation = element("a", { class: "doc" });
  if (lines?.page) link(derivation, lines.page, `${words().derivation}:`);
  $("tensor").replaceChildren(
    element("h3", {}, `${name || words().theModel}: ${found.kind}`),
    element("p", {}, found.formula ? `${words().formula}: ${found.formula}` : ""),
    element("table", {},
      element("thead", {}, element("tr", {}, element("td"), element("th", { scope: "col" }, words().value), element("th", { scope: "col" }, gradient ? words().grad : words().noGradient))),
      element("tbody", {},
        row(words().shape, value.shape.join(" × ") || "()", gradient ? gradient.shape.join(" × ") : "–"),
        numbers(words().norm, each => each.norm),
        row(words().range, `${short(value.least)} … ${short(value.most)}`, gradient ? `${short(gradient.least)} … ${short(gradient.most)}` : "–"))),
    element("h3", {}, words().value), map(value, found, cell),
    ...(gradient ? [element("h3", {}, words().grad), map(gradient, found, cell)] : []),
    cell,
    ...(lines ? [
      element("h3", {}, words().forwardLines(lines.name)), element("pre", { tabindex: "0" }, lines.forward),
      element("h3", {}, words().backwardLines), lines.backward ? element("pre", { tabindex: "0" }, lines.backward) : element("p", {}, words().composed),
      element("p", {}, lines.page ? derivation : ""),
    ] : []),
    ...(found.parameters.length ? [
      element("h3", {}, words().parameters),
      element("div", { class: "params" }, ...found.parameters.map(each => element("button", { onclick: () => showPart(each, "parameter") }, each))),
    ] : []));
}

// a map of numbers on which each can be read, by a press or by the arrow keys
function map(tensor, found, out) {
  const [rows, columns] = tensor.matrix.shape;
  const canvas = element("canvas", { class: "tensor-map", role: "img", tabindex: "0" });
  signed(canvas, tensor.matrix.data, rows, columns);
  canvas.style.height = `${Math.min(220, Math.max(26, rows * 7))}px`;
  const cropped = rows < tensor.rows || columns < tensor.columns ? `, ${words().cropped(rows, columns)}` : "";
  canvas.setAttribute("aria-label", `${rows} × ${columns}${cropped}; ${words().cellHelp}`);
  let at = [0, 0];
  const tell = () => {
    const n = at[0] * columns + at[1];
    const value = found.value.matrix.data[n];
    const gradient = found.gradient ? found.gradient.matrix.data[n] : null;
    out.textContent = words().cell(at[0], at[1], short(value), short(gradient));
    Object.assign(out.dataset, { row: at[0], column: at[1], value, gradient });
  };
  canvas.addEventListener("click", event => {
    const box = canvas.getBoundingClientRect();
    at = [[event.clientY - box.top, box.height, rows], [event.clientX - box.left, box.width, columns]]
      .map(([offset, size, count]) => Math.min(count - 1, Math.max(0, Math.floor(offset / size * count))));
    tell();
  });
  canvas.addEventListener("keydown", event => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    at = [Math.min(rows - 1, Math.max(0, at[0] + move[0])), Math.min(columns - 1, Math.max(0, at[1] + move[1]))];
    tell();
  });
  return canvas;
}
