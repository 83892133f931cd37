// Canvases and bars: images, heat maps over them, signed maps, lines between patches.

const parse = name => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
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

export const percent = value => `${(100 * value).toFixed(value > 0.9995 || value < 0.0995 ? 2 : 1)} %`;

// colors(n) -> [r, g, b] of each of rows x columns cells; the canvas is as fine as its cells
export function paint(canvas, rows, columns, color) {
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows);
  for (let n = 0; n < rows * columns; n++) {
    const [r, g, b] = color(n);
    image.data.set([r, g, b, 255], 4 * n);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const mixed = (from, to, share) => from.map((v, i) => v + (to[i] - v) * share);

// (C, H, W) in [0, 1]
export function picture(canvas, { shape: [channels, height, width], data }) {
  const area = height * width;
  paint(canvas, height, width, n => [0, 1, 2].map(c => 255 * Math.min(1, Math.max(0, data[(channels === 3 ? c * area : 0) + n]))));
}

// a map (gh, gw) over an image, the brightest cell being the largest number
export function overlay(canvas, pixels, map, rows, columns) {
  const [channels, height, width] = pixels.shape;
  const area = height * width;
  let most = 0;
  for (const value of map) most = Math.max(most, Math.abs(value));
  paint(canvas, height, width, n => {
    const [y, x] = [Math.floor(n / width), n % width];
    const cell = Math.floor(y * rows / height) * columns + Math.floor(x * columns / width);
    const gray = [0, 1, 2].map(c => 190 * Math.min(1, Math.max(0, pixels.data[(channels === 3 ? c * area : 0) + n])));
    const share = most ? map[cell] / most : 0;
    return mixed(gray, share >= 0 ? [255, 178, 36] : [80, 140, 255], 0.85 * Math.abs(share));
  });
}

// signed numbers: one color up, another down, the paper's color at 0
export function signed(canvas, data, rows, columns, most = null) {
  const [plus, minus, zero] = [parse("--plus"), parse("--minus"), parse("--paper")];
  if (most === null) {
    most = 0;
    for (const value of data) most = Math.max(most, Math.abs(value));
  }
  paint(canvas, rows, columns, n => {
    const share = most ? Math.max(-1, Math.min(1, data[n] / most)) : 0;
    return mixed(zero, share > 0 ? plus : minus, Math.sqrt(Math.abs(share)));
  });
}

export function svgLines(svg, lines, rows, columns, from) {
  svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const parts = lines.map(({ row, column, share }) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const set = { x1: from[1] + 0.5, y1: from[0] + 0.5, x2: column + 0.5, y2: row + 0.5 };
    for (const [name, value] of Object.entries(set)) line.setAttribute(name, value);
    line.setAttribute("stroke", "#ffb224");
    line.setAttribute("stroke-opacity", 0.25 + 0.75 * share);
    line.setAttribute("stroke-width", (0.01 + 0.11 * share) * Math.max(1, columns / 4));
    line.setAttribute("stroke-linecap", "round");
    return line;
  });
  const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  for (const [name, value] of Object.entries({ cx: from[1] + 0.5, cy: from[0] + 0.5, r: 0.13 * Math.max(1, columns / 4), fill: "#ffb224", stroke: "#000", "stroke-width": 0.02 })) {
    dot.setAttribute(name, value);
  }
  svg.replaceChildren(...parts, ...(lines.length ? [dot] : []));
}

export function rectangles(svg, boxes, rows, columns) {
  svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(...boxes.map(({ x, y, w, h, color, dash }) => {
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const set = { x, y, width: w, height: h, fill: "none", stroke: color, "stroke-width": 0.09, "stroke-dasharray": dash };
    for (const [name, value] of Object.entries(set)) if (value !== undefined) box.setAttribute(name, value);
    return box;
  }));
}

// a row of a bar chart that can be pressed
export function bar(name, value, share, options = {}) {
  const fill = element("span", { class: "fill" });
  fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return element("button", { class: `bar ${options.class || ""}`, ...options.attributes },
    element("span", { class: "name", title: name }, name),
    element("span", { class: "track", "aria-hidden": "true" }, fill),
    element("span", { class: "value" }, value));
}
