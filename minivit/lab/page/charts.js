// Canvases and bars: images, heat maps over them, signed maps, lines between patches.

// a color of the style sheet as [r, g, b]; asked anew where the theme has changed, since each answer waits for styles
const dark = matchMedia("(prefers-color-scheme: dark)");
const known = new Map();
const parse = name => {
  const key = `${name} ${document.documentElement.dataset.theme} ${dark.matches}`;
  if (!known.has(key)) {
    const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    known.set(key, [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16)));
  }
  return known.get(key);
};

export const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
};

export const short = value => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(4));
};

export const percent = value => `${(100 * value).toFixed(value > 0.9995 || value < 0.0995 ? 2 : 1)}%`;

// write text or an attribute only where it differs: each write costs a layout
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function set(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

// color(n, data, 4 * n) writes [r, g, b] of each of rows x columns cells; the canvas is as fine as its cells
export function paint(canvas, rows, columns, color) {
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  const { data } = image;
  for (let n = 0; n < rows * columns; n++) {
    color(n, data, 4 * n);
    data[4 * n + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// (C, H, W) in [0, 1]; the array of an ImageData clamps and rounds
export function picture(canvas, { shape: [channels, height, width], data }) {
  const next = channels === 3 ? height * width : 0;
  paint(canvas, height, width, (n, out, at) => {
    for (let c = 0; c < 3; c++) out[at + c] = 255 * data[c * next + n];
  });
}

const ABOVE = [255, 178, 36];
const BELOW = [80, 140, 255];

// the largest absolute value
export function largest(data) {
  let most = 0;
  for (const value of data) most = Math.max(most, Math.abs(value));
  return most;
}

// a map (gh, gw) over an image, the brightest cell being the largest number
export function overlay(canvas, pixels, map, rows, columns) {
  const [channels, height, width] = pixels.shape;
  const next = channels === 3 ? height * width : 0;
  const most = largest(map) || 1;
  paint(canvas, height, width, (n, out, at) => {
    const cell = Math.floor(Math.floor(n / width) * rows / height) * columns + Math.floor(n % width * columns / width);
    const share = 0.85 * map[cell] / most;
    const color = share >= 0 ? ABOVE : BELOW;
    for (let c = 0; c < 3; c++) {
      const gray = 190 * Math.min(1, Math.max(0, pixels.data[c * next + n]));
      out[at + c] = gray + (color[c] - gray) * Math.abs(share);
    }
  });
}

// signed numbers: one color up, another down, the paper's color at 0
export function signed(canvas, data, rows, columns, most = null) {
  const [plus, minus, zero] = [parse("--plus"), parse("--minus"), parse("--paper")];
  const scale = most === null ? largest(data) || 1 : most;
  paint(canvas, rows, columns, (n, out, at) => {
    const color = data[n] > 0 ? plus : minus;
    const share = Math.sqrt(Math.min(1, Math.abs(data[n] / scale)));
    for (let c = 0; c < 3; c++) out[at + c] = zero[c] + (color[c] - zero[c]) * share;
  });
}

// shapes [tag, attributes] on a map of rows x columns; a shape of the same kind is changed, not made anew
function shapes(svg, rows, columns, all) {
  set(svg, "viewBox", `0 0 ${columns} ${rows}`);
  set(svg, "preserveAspectRatio", "none");
  all.forEach(([tag, attributes], n) => {
    let shape = svg.children[n];
    if (shape?.tagName !== tag) {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      if (shape) shape.replaceWith(made);
      else svg.append(made);
      shape = made;
    }
    for (const [name, value] of Object.entries(attributes)) set(shape, name, value);
  });
  while (svg.children.length > all.length) svg.lastChild.remove();
}

export function svgLines(svg, lines, rows, columns, from) {
  const wide = Math.max(1, columns / 4);
  const parts = lines.map(({ row, column, share }) => ["line", {
    x1: from[1] + 0.5, y1: from[0] + 0.5, x2: column + 0.5, y2: row + 0.5, stroke: "#ffb224",
    "stroke-opacity": 0.25 + 0.75 * share, "stroke-width": (0.01 + 0.11 * share) * wide, "stroke-linecap": "round",
  }]);
  const dot = ["circle", { cx: from[1] + 0.5, cy: from[0] + 0.5, r: 0.13 * wide, fill: "#ffb224", stroke: "#000", "stroke-width": 0.02 }];
  shapes(svg, rows, columns, lines.length ? [...parts, dot] : []);
}

export function rectangles(svg, boxes, rows, columns) {
  shapes(svg, rows, columns, boxes.map(({ x, y, w, h, color, dash = "none" }) => ["rect", {
    x, y, width: w, height: h, fill: "none", stroke: color, "stroke-width": 0.09, "stroke-dasharray": dash,
  }]));
}

// a bar chart whose rows can be pressed: {name, value, share, mark, attributes, press}; the buttons are kept while the
// names stay, and a pressed one keeps the focus where they change
export function bars(box, rows) {
  const held = document.activeElement?.parentElement === box ? document.activeElement.title : null;
  if ([...box.children].map(each => each.title).join("\n") !== rows.map(each => each.name).join("\n")) {
    box.replaceChildren(...rows.map(({ name }) => element("button", { title: name },
      element("span", { class: "name" }, name),
      element("span", { class: "track", "aria-hidden": "true" }, element("span", { class: "fill" })),
      element("span", { class: "value" }))));
    if (held !== null) [...box.children].find(each => each.title === held)?.focus();
  }
  rows.forEach(({ value, share, mark = "", attributes, press }, n) => {
    const button = box.children[n];
    set(button, "class", `bar ${mark}`);
    for (const [name, each] of Object.entries(attributes)) set(button, name, each);
    button.onclick = press;
    button.querySelector(".fill").style.transform = `scaleX(${Math.min(1, Math.max(0, share))})`;
    write(button.lastChild, value);
  });
}
