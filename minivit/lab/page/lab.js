// The page: keeps what is chosen, asks the lab, and hands the answers to the views.

import { call, pack } from "./backend.js";
import { Pad } from "./pad.js";
import { element, largest, percent } from "./charts.js";
import { language, speak, words } from "./words.js";
import { Tour } from "./tour.js";
import * as views from "./views.js";
import { showPart, showParts } from "./tensors.js";

const $ = id => document.getElementById(id);

// what is chosen, and the last answers
export const state = {
  about: null, site: "", reading: null, patch: null, block: 0, head: null, target: null,
  switches: [], onlyHead: 0, stage: null, base: null, nudge: 0, part: null, accuracies: [], step: null,
};
let pad = null;
let tour = null;

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

const complain = error => say(error.message, true);

// the classes of the lists: all of a small model's, else the ten most probable
export const shown = () => {
  const all = [...state.about.labels.keys()];
  const p = state.reading && state.reading.probabilities.data;
  return all.length <= 10 || !p ? all.slice(0, 10) : all.sort((a, b) => p[b] - p[a]).slice(0, 10);
};

// --- reading: the newest drawing wins, one request at a time ---------------------------------------------------------

let wanted = null;
let wake = () => {}; // called with each newer drawing
let running = null;

export function refresh() {
  wanted = performance.now();
  wake();
  running ??= read().finally(() => { running = null; });
  return running;
}

async function read() {
  while (wanted !== null) {
    const since = wanted;
    wanted = null;
    document.body.dataset.busy = "yes";
    try {
      state.reading = await call("read", {
        pixels: pack(nudged()), target: state.target, patch: state.patch,
        switches: state.switches, head: state.onlyHead,
      });
      if (wanted !== null) continue; // a newer drawing waits
      state.stage = null;
      render();
      const newer = new Promise(done => { wake = () => done(null); });
      const ms = await Promise.race([painted(since), newer]);
      if (ms === null) continue; // its request leaves before this one's frame is there
      document.body.dataset.ms = ms;
      const best = state.reading.probabilities.data.reduce((best, p, n, all) => (p > all[best] ? n : best), 0);
      say(words().reads(state.about.labels[best], percent(state.reading.probabilities.data[best]), Math.round(ms)));
      document.body.dataset.answer = state.about.labels[best];
      if (state.part) await showPart(state.part.name, state.part.which);
    } catch (error) {
      complain(error);
    }
  }
  delete document.body.dataset.busy;
}

// milliseconds from a moment to the frame that shows what was drawn since
const painted = since => new Promise(done => {
  requestAnimationFrame(() => {
    const channel = new MessageChannel(); // its message is handled after the frame
    channel.port1.onmessage = () => done(performance.now() - since);
    channel.port2.postMessage(null);
  });
});

function render() {
  views.classes(state);
  views.see(state);
  views.attention(state);
  views.backward(state);
  showParts(state);
  if (!$("windows").hidden) windows();
}

// --- the drawing, and the step against its gradient -------------------------------------------------------------------

function unnudge() {
  state.base = null;
  state.nudge = 0;
  $("nudge").value = 0;
}

function drawn(finished, changed = true) {
  if (changed) {
    unnudge();
    refresh();
  }
  if (finished) document.body.dataset.drawings = Number(document.body.dataset.drawings || 0) + 1;
}

// pixels - size * dpixels / max |dpixels|, between black and white
function nudged() {
  if (!state.base || state.nudge === 0) return state.base ? state.base.pixels : pad.pixels;
  const { pixels, gradient } = state.base;
  const most = largest(gradient) || 1;
  return pixels.map((value, n) => Math.min(1, Math.max(0, value - state.nudge * gradient[n] / most)));
}

async function nudge() {
  const size = Number($("nudge").value) / 100;
  if (!state.base) {
    await running;
    const { dpixels, target, probabilities } = state.reading;
    state.base = { pixels: Float32Array.from(pad.pixels), gradient: dpixels.data, target, p: probabilities.data[target] };
  }
  state.target = state.base.target;
  state.nudge = size;
  await refresh();
}

async function aim(target) {
  state.target = target;
  unnudge();
  await refresh();
}

async function choosePatch(patch) {
  state.patch = patch;
  if (!state.reading) return;
  try {
    const found = await call("attend", { reading: state.reading.reading, patch });
    if (state.patch !== patch) return;
    Object.assign(state.reading, found);
    views.see(state);
    views.attention(state);
    if (!$("windows").hidden) windows();
  } catch (error) {
    await refresh();
  }
}

function chooseHead(block, head) {
  [state.block, state.head] = [block, head];
  views.attention(state);
  if (!$("windows").hidden) windows();
}

let asked = 0;

async function windows() {
  const number = ++asked;
  try {
    const found = await call("windows", { reading: state.reading.reading, block: state.block });
    if (number === asked) views.windows(state, found); // answers may arrive in another order
  } catch (error) {
    complain(error);
  }
}

async function example(digit, nth) {
  try {
    pad.show((await call("example", { digit, nth })).pixels.data);
    await refresh();
  } catch (error) {
    complain(error);
  }
}

// --- training and switches --------------------------------------------------------------------------------------------

// a step, or its undoing, and all that shows the changed model
async function change(ask) {
  try {
    state.step = await ask();
    state.accuracies = [];
    await refresh();
    views.step(state);
    views.accuracies(state);
    await similarity();
  } catch (error) {
    complain(error);
  }
}

const train = () => change(() => call("step", {
  pixels: pack(nudged()), label: Number($("label").value), switches: state.switches, head: state.onlyHead,
}));

const undo = () => change(async () => ({ undone: true, ...await call("undo") }));

let measured = 0;

// part by part, so that a drawing is read in between; a later call ends an earlier one
async function measure() {
  const number = ++measured;
  const rows = state.switches.length ? [[], state.switches] : [[]];
  try {
    for (const switches of rows) {
      const head = switches.includes("heads") ? state.onlyHead : 0;
      let answer = { next: 0 };
      while (answer.next !== null) {
        answer = await call("accuracy", { switches, head, start: answer.next });
        if (number !== measured) return;
      }
      const key = JSON.stringify([switches, head]);
      state.accuracies = [...state.accuracies.filter(each => each.key !== key), { key, switches, head, ...answer }];
      views.accuracies(state);
    }
  } catch (error) {
    complain(error);
  }
}

async function flip() {
  state.switches = [...document.querySelectorAll("#switch-list input:checked")].map(each => each.value);
  state.onlyHead = Number($("only-head").value);
  $("kept-head").hidden = !state.switches.includes("heads");
  unnudge();
  await refresh();
  if (state.about.test) await measure();
}

async function similarity() {
  if (state.about.positions) views.similarity(await call("similarity"));
}

// --- links to pages ---------------------------------------------------------------------------------------------------

export function link(anchor, page, before = "") {
  const inChinese = language === "zh" ? "zh/" : "";
  anchor.textContent = `${before} docs/${page}`.trim();
  if (state.site) anchor.href = `${state.site}${inChinese}${page}.html`;
  else anchor.removeAttribute("href");
}

function links() {
  for (const each of document.querySelectorAll("a[data-page]")) {
    const text = words()[each.dataset.t];
    link(each, each.dataset.page, text);
  }
}

// --- setting up -------------------------------------------------------------------------------------------------------

function options(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map(([value, name]) => element("option", { value }, name)));
  if (names.some(([value]) => String(value) === before)) select.value = before;
}

function relabel() {
  speak(language);
  links();
  const { about } = state;
  if (!about) return;
  $("pad").setAttribute("aria-label", words().pad);
  $("model").textContent = words().model(about, about.blocks.length, about.parameters.toLocaleString("en"));
  $("classes-title").textContent = about.labels.length > 10 ? words().classesMany(about.labels.length) : words().classes;
  $("training-help").textContent = words().trainingHelp(about.lr);
  options($("block"), about.blocks.map((name, n) => [n, name]));
  const names = about.labels.map((name, n) => [n, name]);
  options($("label"), names);
  options($("target"), names);
  if (about.test) options($("digit"), names);
  const checked = new Set(state.switches);
  $("switch-list").replaceChildren(...about.switches.map(name => {
    const box = element("input", { type: "checkbox", value: name, id: `switch-${name}`, onchange: flip });
    box.checked = checked.has(name);
    return element("label", { class: "switch", for: `switch-${name}` }, box, ` ${words().switchNames[name]}`);
  }));
  views.accuracies(state);
  if (state.step) views.step(state);
  if (state.reading) render();
  if (state.part) showPart(state.part.name, state.part.which);
  if (tour) tour.say();
}

async function tourStep(number) {
  if (number === 0 && state.about.test) await example(7, 0);
  if (number === 3) {
    const middle = state.about.grid.map(side => Math.floor(side / 2));
    chooseHead(0, null);
    await choosePatch(middle);
  }
  if (number === 4) {
    chooseHead(state.about.blocks.length - 1, null);
    await choosePatch(null);
  }
  if (number === 6) views.play(state);
}

function connect() {
  $("clear").addEventListener("click", () => pad.clear());
  let nth = 0;
  $("digit").addEventListener("change", () => example(Number($("digit").value), nth = 0));
  $("next-example").addEventListener("click", () => example(Number($("digit").value), ++nth));
  $("center").checked = pad.centered;
  $("center").addEventListener("change", () => { pad.centered = $("center").checked; drawn(true); });
  const take = file => pad.file(file, $("invert").checked).catch(() => complain(new Error("this is no image")));
  $("file").addEventListener("change", () => { if ($("file").files[0]) take($("file").files[0]); });
  $("invert").addEventListener("change", () => { if ($("file").files[0]) take($("file").files[0]); });
  document.addEventListener("dragover", event => event.preventDefault());
  document.addEventListener("drop", event => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  $("whole").addEventListener("click", () => choosePatch(null));
  $("block").addEventListener("change", () => chooseHead(Number($("block").value), state.head));
  $("head").addEventListener("change", () => chooseHead(state.block, $("head").value === "mean" ? null : Number($("head").value)));
  const openPart = name => { showPart(name, "y"); $("inside").scrollIntoView(); };
  $("open-attention").addEventListener("click", () => openPart(`${state.about.blocks[state.block]}.attn`));
  $("open-tokens").addEventListener("click", () => openPart("patch_embed"));
  $("play").addEventListener("click", () => views.play(state));
  $("back-one").addEventListener("click", () => views.backOne(state));
  $("target").addEventListener("change", () => aim(Number($("target").value)));
  $("nudge").addEventListener("input", nudge);
  $("train").addEventListener("click", train);
  $("undo").addEventListener("click", undo);
  $("measure").addEventListener("click", measure);
  $("only-head").addEventListener("change", flip);
  views.connect({ aim, choosePatch, chooseHead, openPart });
}

$("language").addEventListener("click", () => { speak(language === "zh" ? "en" : "zh"); relabel(); });
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  if (state.reading) render();
  if (state.part) showPart(state.part.name, state.part.which);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (state.reading) render(); });

async function start() {
  speak(language);
  say(words().loading);
  for (;;) {
    const now = await call("state");
    if (now.failure) throw new Error(now.failure);
    state.site = now.site && !now.site.endsWith("/") ? `${now.site}/` : now.site;
    if (now.ready) break;
    say(now.progress);
    await new Promise(done => setTimeout(done, 300));
  }
  state.about = await call("about");
  const { about } = state;
  pad = new Pad($("pad"), about.size, drawn);
  $("main").hidden = false;
  for (const id of ["digit", "next-example", "measure"]) $(id).disabled = !about.test;
  $("positions").hidden = !about.positions;
  $("windows").hidden = !about.windows;
  $("kept-head").hidden = true;
  $("rollout-figure").hidden = about.windows;
  connect();
  tour = new Tour(tourStep, link);
  relabel();
  await refresh();
  say(words().ready);
  options($("only-head"), [...state.reading.maps[0].shape.slice(0, 1)].flatMap(count => [...Array(count).keys()].map(n => [n, n])));
  await similarity();
  document.body.dataset.ready = "yes";
}

start().catch(complain);
