// The views of a reading: classes, patches, attention, backward pass, training step, switches, positions, windows.

import { bars, element, largest, overlay, percent, picture, rectangles, set, short, signed, svgLines, write } from "./charts.js";
import { words } from "./words.js";
import { shown } from "./lab.js";

const $ = id => document.getElementById(id);
let act = {};

export function connect(actions) {
  act = actions;
}

// --- classes ----------------------------------------------------------------------------------------------------------

export function classes(state) {
  const { probabilities: { data: p }, target, loss } = state.reading;
  bars($("bars"), shown().map(n => ({
    name: state.about.labels[n], value: percent(p[n]), share: p[n],
    attributes: { "aria-pressed": n === target, "data-class": n, "data-p": p[n] },
    press: () => act.aim(state.target === n ? null : n),
  })));
  write($("loss"), words().loss(state.about.labels[target], short(loss)));
  $("target").value = target;
  const size = Number($("nudge").value) / 100;
  write($("nudge-label"), words().nudge(percent(size)));
  write($("nudge-note"), state.base
    ? words().nudgeNote(percent(state.base.p), percent(p[state.base.target]), state.about.labels[state.base.target])
    : words().nudgeStart);
}

// --- the image, its patches and tokens --------------------------------------------------------------------------------

export function see(state) {
  const { pixels, tokens, patch } = state.reading;
  const [rows, columns] = state.about.grid;
  const canvas = $("patches").querySelector("canvas");
  picture(canvas, pixels);
  set(canvas, "aria-label", words().image);
  cells($("patches").querySelector(".cells"), rows, columns, patch);
  set($("whole"), "aria-pressed", patch === null);
  const [count, width] = tokens.shape;
  signed($("tokens"), tokens.data, count, width);
  set($("tokens"), "aria-label", words().tokens);
  write($("tokens-note"), words().tokensNote(count, width));
}

// a button for each patch; arrow keys move between them, and one of them is in the order of the Tab key
function cells(box, rows, columns, patch) {
  if (box.children.length !== rows * columns) {
    box.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
    box.replaceChildren(...Array.from({ length: rows * columns }, (_, n) => element("button", {
      onclick: () => act.choosePatch([Math.floor(n / columns), n % columns]),
    })));
    box.onkeydown = event => {
      const now = [...box.children].indexOf(document.activeElement);
      const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      const next = box.children[now + move];
      if (now < 0 || !move || !next) return;
      event.preventDefault();
      next.focus();
    };
  }
  const chosen = patch ? patch[0] * columns + patch[1] : -1;
  [...box.children].forEach((each, n) => {
    set(each, "aria-label", words().patch(Math.floor(n / columns), n % columns));
    set(each, "aria-pressed", n === chosen);
    set(each, "tabindex", n === Math.max(0, chosen) ? 0 : -1);
  });
}

// --- attention --------------------------------------------------------------------------------------------------------

// one map of a block: of a head, or the mean of all
function mapOf(maps, head) {
  const [heads, rows, columns] = maps.shape;
  const area = rows * columns;
  if (head !== null) return maps.data.subarray(head * area, (head + 1) * area);
  const mean = new Float32Array(area);
  for (let n = 0; n < mean.length; n++) {
    for (let h = 0; h < heads; h++) mean[n] += maps.data[h * area + n] / heads;
  }
  return mean;
}

const strongest = (map, columns) => {
  const n = map.reduce((best, value, at) => (value > map[best] ? at : best), 0);
  return words().strongest(Math.floor(n / columns), n % columns, short(map[n]));
};

export function attention(state) {
  const { maps, patch, pixels, rollout } = state.reading;
  const { about } = state;
  state.block = Math.min(state.block, maps.length - 1);
  const here = maps[state.block];
  const [heads, rows, columns] = here.shape;
  if (state.head !== null) state.head = Math.min(state.head, heads - 1);
  const what = patch ? words().patch(...patch) : words().headReads(about.pool);
  write($("attention-note"), `${words().attentionNote(what)} ${state.switches.includes("softmax") ? words().attentionUnnormalized : ""}`);
  $("block").value = state.block;
  if ($("head").children.length !== heads + 1) {
    $("head").replaceChildren(element("option", { value: "mean" }),
      ...[...Array(heads).keys()].map(n => element("option", { value: n }, String(n))));
  }
  write($("head").firstChild, words().mean);
  $("head").value = state.head === null ? "mean" : state.head;
  const map = mapOf(here, state.head);
  const heat = $("heat").querySelector("canvas");
  overlay(heat, pixels, map, rows, columns);
  set(heat, "aria-label", `${words().heat}, ${strongest(map, columns)}`);
  const under = $("lines").querySelector("canvas");
  picture(under, pixels);
  set(under, "aria-label", `${words().lines}, ${strongest(map, columns)}`);
  lines($("lines").querySelector("svg"), map, rows, columns, patch, about.grid);
  $("rollout-figure").hidden = rollout === null;
  if (rollout) {
    const canvas = $("rollout").querySelector("canvas");
    overlay(canvas, pixels, rollout.data, ...rollout.shape);
    set(canvas, "aria-label", `${words().rollout}, ${strongest(rollout.data, rollout.shape[1])}`);
  }
  allHeads(state);
}

function lines(svg, map, rows, columns, patch, grid) {
  const most = largest(map) || 1;
  const scaled = patch ? [Math.min(rows - 1, Math.floor(patch[0] * rows / grid[0])), Math.min(columns - 1, Math.floor(patch[1] * columns / grid[1]))] : null;
  const from = scaled || [(rows - 1) / 2, columns - 0.5]; // what the head reads stands at the right edge
  const all = Array.from(map, (value, n) => ({ row: Math.floor(n / columns), column: n % columns, share: Math.abs(value) / most }));
  const drawn = all.filter(each => each.share > 0.02).sort((a, b) => b.share - a.share).slice(0, 80);
  svgLines(svg, drawn, rows, columns, from);
}

function allHeads(state) {
  const { maps, pixels } = state.reading;
  const key = maps.map(each => each.shape[0]).join();
  if ($("heads").dataset.key !== key) {
    $("heads").dataset.key = key;
    $("heads").replaceChildren(...maps.map((each, block) => element("div", { class: "heads-row" },
      element("span", {}, state.about.blocks[block]),
      ...[...Array(each.shape[0]).keys()].map(head => element("button", {
        "data-block": block, "data-head": head, onclick: () => act.chooseHead(block, head),
      }, element("canvas"))))));
  }
  for (const button of $("heads").querySelectorAll("button")) {
    const [block, head] = [Number(button.dataset.block), Number(button.dataset.head)];
    const [, rows, columns] = maps[block].shape;
    overlay(button.firstChild, pixels, mapOf(maps[block], head), rows, columns);
    set(button, "aria-label", words().headName(state.about.blocks[block], head));
    set(button, "aria-pressed", block === state.block && head === state.head);
  }
}

// --- the backward pass ------------------------------------------------------------------------------------------------

let timer = null;

// the parts whose gradient is shown, in the order of the backward pass: down to the parts of blocks
const stagesOf = state => {
  const known = new Map(state.reading.parts.map(part => [part.name, part]));
  const deepest = state.about.windows ? 4 : 2;
  const wanted = part => part.name !== "" && part.dy !== null && part.depth <= deepest && (part.depth < 2 || /\.(norm1|attn|norm2|mlp)$/.test(part.name));
  return state.reading.backward.map(name => known.get(name)).filter(part => part && wanted(part));
};

export function backward(state) {
  const stages = stagesOf(state);
  const done = state.stage === null ? stages.length : state.stage;
  const most = Math.max(...stages.map(part => part.dy), 1e-30);
  const least = Math.max(Math.min(...stages.map(part => part.dy).filter(dy => dy > 0), most), most * 1e-9);
  const span = Math.log(most / least) || 1;
  bars($("stages"), stages.map((part, n) => ({
    name: part.name, value: short(part.dy), share: part.dy > 0 ? 0.04 + 0.96 * Math.log(part.dy / least) / span : 0,
    mark: n < done ? (n === done - 1 && state.stage !== null ? "now" : "") : "waiting",
    attributes: { "data-part": part.name, "data-dy": part.dy },
    press: () => act.openPart(part.name),
  })));
  const at = state.stage ? stages[state.stage - 1] : null;
  write($("stage"), at ? words().stage(state.stage, stages.length, at.name) : words().done(stages.length));
  if (at) $("stages").querySelector(".now")?.scrollIntoView?.({ block: "nearest" });
  const { dpixels } = state.reading;
  const [channels, height, width] = dpixels.shape;
  const canvas = $("gradient").querySelector("canvas");
  const whole = state.stage === null || state.stage >= stages.length;
  const data = new Float32Array(height * width);
  for (let n = 0; whole && n < data.length; n++) for (let c = 0; c < channels; c++) data[n] += dpixels.data[c * data.length + n];
  signed(canvas, data, height, width);
  set(canvas, "aria-label", words().gradient);
}

export function backOne(state) {
  stop();
  const count = stagesOf(state).length;
  state.stage = state.stage === null || state.stage >= count ? 1 : state.stage + 1;
  backward(state);
}

export function play(state) {
  stop();
  state.stage = 0;
  const reading = state.reading;
  const count = stagesOf(state).length;
  timer = setInterval(() => {
    if (state.reading !== reading || state.stage >= count) { // a new drawing, or the end
      stop();
      state.stage = null;
    } else state.stage += 1;
    backward(state);
  }, 220);
}

function stop() {
  clearInterval(timer);
}

// --- training step, switches ------------------------------------------------------------------------------------------

export function step(state) {
  const { step: done } = state;
  $("undo").disabled = done.steps === 0;
  if (done.undone) {
    $("step-result").replaceChildren(element("p", {}, words().undone(done.steps)));
    return;
  }
  const fell = done.after <= done.before;
  const row = (name, value) => element("tr", {}, element("td", {}, name), element("td", { class: "right" }, value));
  $("step-result").replaceChildren(
    element("table", {}, element("tbody", {}, row(words().before, short(done.before)), row(words().after, short(done.after)))),
    element("p", { class: fell ? "falls" : "rises" }, fell ? words().falls : words().rises),
    element("h3", {}, words().moved),
    element("p", { class: "note" }, words().movedHelp),
    element("table", {}, element("tbody", {}, ...done.moved.slice(0, 5).map(each => row(each.name, percent(each.share))))),
    element("h3", {}, words().changedAttention),
    element("table", {}, element("tbody", {}, ...done.attention.map(each => row(each.name, short(each.largest))))));
  $("step-result").dataset.before = done.before;
  $("step-result").dataset.after = done.after;
}

export function accuracies(state) {
  if (!state.about.test) {
    $("accuracies").replaceChildren(element("p", { class: "note" }, words().noTest));
    return;
  }
  const name = each => each.switches.map(one => words().switchNames[one] + (one === "heads" ? ` (${each.head})` : "")).join(", ") || words().asTrained;
  const { test } = state.about;
  $("accuracies").replaceChildren(
    element("table", {}, element("tbody", {}, ...state.accuracies.map(each => element("tr", { "data-key": each.key, "data-accuracy": each.accuracy },
      element("td", {}, name(each)), element("td", { class: "right" }, percent(each.accuracy)))))),
    element("p", { class: "note" }, state.accuracies.length ? words().accuracy("", test.count, test.source).trim() : ""));
}

// --- positions of a ViT, windows of a Swin ----------------------------------------------------------------------------

export function similarity({ similarity: { shape: [rows, columns], data } }) {
  const [high, wide] = [rows * (rows + 1) - 1, columns * (columns + 1) - 1]; // one row or column between two maps
  const all = new Float32Array(high * wide);
  let [least, most] = [1, -1];
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) for (let v = 0; v < rows; v++) for (let u = 0; u < columns; u++) {
    const value = data[((y * columns + x) * rows + v) * columns + u];
    all[(y * (rows + 1) + v) * wide + x * (columns + 1) + u] = value;
    if (y !== v || x !== u) [least, most] = [Math.min(least, value), Math.max(most, value)];
  }
  const canvas = $("similarity").querySelector("canvas");
  signed(canvas, all, high, wide, 1);
  canvas.setAttribute("aria-label", words().positions);
  $("similarity-note").textContent = words().similarityNote(short(least), short(most));
}

export function windows(state, found) {
  const [rows, columns] = found.real;
  const canvas = $("window-map").querySelector("canvas");
  const patch = state.patch || [Math.floor(state.about.grid[0] / 2), Math.floor(state.about.grid[1] / 2)];
  const at = Math.min(rows - 1, Math.floor(patch[0] * rows / state.about.grid[0])) * columns + Math.min(columns - 1, Math.floor(patch[1] * columns / state.about.grid[1]));
  const window = found.slots.findIndex(slots => slots.includes(at));
  const mask = found.masks[window][found.slots[window].indexOf(at)];
  const map = new Float32Array(rows * columns);
  const real = found.slots[window].map((slot, n) => [slot, mask[n]]).filter(([slot]) => slot >= 0);
  for (const [slot, open] of real) if (open) map[slot] = 1;
  overlay(canvas, state.reading.pixels, map, rows, columns);
  canvas.setAttribute("aria-label", words().windowsNote(found));
  const lines = borders(found, rows, columns);
  const masked = real.filter(([, open]) => !open).map(([slot]) => ({ x: slot % columns + 0.12, y: Math.floor(slot / columns) + 0.12, w: 0.76, h: 0.76, color: "#ef4444", dash: "0.12 0.1" }));
  const here = { x: at % columns + 0.06, y: Math.floor(at / columns) + 0.06, w: 0.88, h: 0.88, color: "#f59e0b" };
  rectangles($("window-map").querySelector("svg"), [...lines, ...masked, here], rows, columns);
  $("window-note").textContent = `${words().windowsNote(found)}. ${words().windowMask(real.filter(([, open]) => open).length, real.length)}`;
}

// the windows on the map, before the roll: cut at shift, shift + window, ...
function borders({ real, window, shift }, rows, columns) {
  const cuts = (length, side, by) => {
    const found = [0];
    for (let at = by || side; at < length; at += side) found.push(at);
    return [...found, length];
  };
  const [ys, xs] = [cuts(real[0], window[0], shift[0]), cuts(real[1], window[1], shift[1])];
  return ys.slice(1).flatMap((y, a) => xs.slice(1).map((x, b) => ({ x: xs[b], y: ys[a], w: x - xs[b], h: y - ys[a], color: "#7aa7ff" })));
}
