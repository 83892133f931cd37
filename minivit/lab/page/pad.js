// The drawing pad: strokes by mouse, pen, finger or keyboard, and the pixels that the model gets from them.

const SIDE = 280;
const PEN = 20; // a stroke of two pixels of a digit of 28
const BOX = 20 / 28; // MNIST's digits fill 20 of 28 pixels, with their center of mass in the middle

export class Pad {
  constructor(canvas, size, changed) {
    [this.channels, this.height, this.width] = size;
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.changed = changed;
    this.centered = this.channels === 1;
    this.fixed = null; // pixels of an example or an image file
    this.pen = { x: SIDE / 2, y: SIDE / 2, down: false };
    this.clear(false);
    this.listen();
  }

  clear(tell = true) {
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, SIDE, SIDE);
    this.fixed = null;
    if (tell) this.changed(true);
  }

  listen() {
    const at = event => {
      const box = this.canvas.getBoundingClientRect();
      return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
    };
    let last = null;
    this.canvas.addEventListener("pointerdown", event => {
      this.canvas.setPointerCapture(event.pointerId);
      last = at(event);
      this.stroke(last, last);
    });
    this.canvas.addEventListener("pointermove", event => {
      if (!last) return;
      const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [event];
      for (const each of events.length ? events : [event]) {
        const next = at(each);
        this.stroke(last, next);
        last = next;
      }
    });
    const end = () => {
      if (last) this.changed(true, false); // the last move drew it
      last = null;
    };
    this.canvas.addEventListener("pointerup", end);
    this.canvas.addEventListener("pointercancel", end);
    this.canvas.addEventListener("keydown", event => this.key(event));
  }

  // arrows move the pen, the space bar sets it down or lifts it, Delete clears
  key(event) {
    const moves = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
    if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else if (event.key === " ") {
      this.pen.down = !this.pen.down;
      if (this.pen.down) this.stroke([this.pen.x, this.pen.y], [this.pen.x, this.pen.y]);
    } else if (moves[event.key]) {
      const from = [this.pen.x, this.pen.y];
      this.pen.x = Math.min(SIDE, Math.max(0, this.pen.x + moves[event.key][0]));
      this.pen.y = Math.min(SIDE, Math.max(0, this.pen.y + moves[event.key][1]));
      if (this.pen.down) this.stroke(from, [this.pen.x, this.pen.y]);
    } else return;
    event.preventDefault();
  }

  stroke(from, to) {
    if (this.fixed) this.clear(false);
    this.context.strokeStyle = "#fff";
    this.context.lineWidth = PEN;
    this.context.lineCap = this.context.lineJoin = "round";
    this.context.beginPath();
    this.context.moveTo(...from);
    this.context.lineTo(...to);
    this.context.stroke();
    this.changed(false);
  }

  // pixels (C, H, W) in [0, 1]
  show(pixels) {
    this.fixed = Float32Array.from(pixels);
    const small = new OffscreenCanvas(this.width, this.height);
    const image = new ImageData(this.width, this.height);
    const area = this.width * this.height;
    for (let n = 0; n < area; n++) {
      for (let c = 0; c < 3; c++) image.data[4 * n + c] = 255 * pixels[(this.channels === 3 ? c * area : 0) + n];
      image.data[4 * n + 3] = 255;
    }
    small.getContext("2d").putImageData(image, 0, 0);
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(small, 0, 0, SIDE, SIDE);
    this.changed(true);
  }

  // an image file, its short side scaled to the model's, the middle kept
  async file(file, invert) {
    const bitmap = await createImageBitmap(file);
    const canvas = new OffscreenCanvas(this.width, this.height);
    const context = canvas.getContext("2d");
    const scale = Math.max(this.width / bitmap.width, this.height / bitmap.height);
    const [wide, high] = [bitmap.width * scale, bitmap.height * scale];
    context.fillStyle = "#fff";
    context.fillRect(0, 0, this.width, this.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, (this.width - wide) / 2, (this.height - high) / 2, wide, high);
    const { data } = context.getImageData(0, 0, this.width, this.height);
    const area = this.width * this.height;
    const pixels = new Float32Array(this.channels * area);
    for (let n = 0; n < area; n++) {
      const rgb = [data[4 * n], data[4 * n + 1], data[4 * n + 2]].map(v => (invert ? 255 - v : v) / 255);
      if (this.channels === 3) rgb.forEach((v, c) => { pixels[c * area + n] = v; });
      else pixels[n] = (rgb[0] + rgb[1] + rgb[2]) / 3;
    }
    this.show(pixels);
  }

  get pixels() {
    if (this.fixed) return this.fixed;
    const { data } = this.context.getImageData(0, 0, SIDE, SIDE);
    const gray = new Float32Array(SIDE * SIDE);
    for (let n = 0; n < gray.length; n++) gray[n] = data[4 * n] / 255;
    const frame = this.centered ? centeredFrame(gray) : { left: 0, top: 0, side: SIDE };
    const one = shrink(gray, frame, this.width, this.height);
    if (this.channels === 1) return one;
    const all = new Float32Array(this.channels * one.length);
    for (let c = 0; c < this.channels; c++) all.set(one, c * one.length);
    return all;
  }
}

// the square of the pad that becomes the image: the drawing fills BOX of it, its center of mass is in the middle
function centeredFrame(gray) {
  let [left, right, top, bottom, mass, mx, my] = [SIDE, -1, SIDE, -1, 0, 0, 0];
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      const ink = gray[y * SIDE + x];
      if (ink === 0) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
      mass += ink;
      mx += ink * (x + 0.5);
      my += ink * (y + 0.5);
    }
  }
  if (mass === 0) return { left: 0, top: 0, side: SIDE };
  const side = Math.max(right - left + 1, bottom - top + 1) / BOX;
  return { left: mx / mass - side / 2, top: my / mass - side / 2, side };
}

// the mean of the pad over each pixel of the image
function shrink(gray, frame, width, height) {
  const pixels = new Float32Array(width * height);
  const [stepX, stepY] = [frame.side / width, frame.side / height];
  const samples = Math.max(2, Math.min(12, Math.ceil(stepX)));
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      let sum = 0;
      for (let a = 0; a < samples; a++) {
        const y = Math.floor(frame.top + (row + (a + 0.5) / samples) * stepY);
        if (y < 0 || y >= SIDE) continue;
        for (let b = 0; b < samples; b++) {
          const x = Math.floor(frame.left + (column + (b + 0.5) / samples) * stepX);
          if (x >= 0 && x < SIDE) sum += gray[y * SIDE + x];
        }
      }
      pixels[row * width + column] = Math.min(1, sum / (samples * samples));
    }
  }
  return pixels;
}
