// The viewer: draws what `viewer.py` made onto the canvases of `viewer.html`.

const CHECKER = [247, 219]; // light, dark
const CELL = 4; // pixels

const decoded = new Map();

/** A number as text; what rounds to nothing has no sign. */
function twoDigits(number) {
  return (Number(number.toFixed(2)) + 0).toFixed(2);
}

/** The bytes of a PNG at an address, four a pixel; decoded once. */
function pixelsOf(address) {
  if (!decoded.has(address)) decoded.set(address, decode(address));
  return decoded.get(address);
}

async function decode(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Calls `use(pixel, red)` for every pixel of a strip's picture: where its four bytes begin. */
function eachPixel(strip, number, width, use) {
  for (let y = 0, pixel = 0; y < strip.height; y++) {
    const row = 4 * (y * strip.width + number * width);
    for (let x = 0; x < width; x++, pixel++) use(pixel, row + 4 * x);
  }
}

/** Draws one picture of a strip as it is. */
function drawPicture(canvas, strip, number) {
  canvas.getContext("2d").putImageData(strip, -number * canvas.width, 0);
}

/** Draws the sum of some slots' appearances by their masks, over a checker. */
function drawSlots(canvas, appearances, masks, slots) {
  const { width, height } = canvas;
  const sums = new Uint32Array(3 * width * height);
  const open = new Uint8Array(width * height).fill(255);
  for (const slot of slots) {
    eachPixel(masks, slot, width, (pixel, at) => {
      const share = masks.data[at];
      open[pixel] -= share;
      for (let c = 0; c < 3; c++) sums[3 * pixel + c] += share * appearances.data[at + c];
    });
  }
  const image = new ImageData(width, height);
  eachPixel(image, 0, width, (pixel, at) => {
    const cells = Math.floor(pixel / width / CELL) + Math.floor((pixel % width) / CELL);
    const behind = open[pixel] * CHECKER[cells % 2];
    for (let c = 0; c < 3; c++) image.data[at + c] = Math.round((sums[3 * pixel + c] + behind) / 255);
    image.data[at + 3] = 255;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The number of the value that is nearest to another. */
function nearest(values, own) {
  const distances = values.map((value) => Math.abs(value - own));
  return distances.indexOf(Math.min(...distances));
}

/** One run's pictures and controls. */
class Viewer {
  constructor(root, view) {
    this.root = root;
    this.view = view;
    this.turn = 0;
    this.boxes = [...root.querySelectorAll(".slot input")];
    this.listen();
    this.restart();
  }

  find(name) {
    return this.root.querySelector("." + name);
  }

  listen() {
    this.find("image").addEventListener("change", () => showImage(this));
    for (const control of [this.find("stage"), this.find("value"), ...this.boxes]) {
      control?.addEventListener("input", () => this.draw());
    }
    for (const name of ["moved-slot", "dimension"]) {
      this.find(name)?.addEventListener("change", () => this.restart());
    }
    this.find("all-on").addEventListener("click", () => this.switchAll(true));
    this.find("all-off").addEventListener("click", () => this.switchAll(false));
  }

  switchAll(on) {
    for (const box of this.boxes) box.checked = on;
    this.draw();
  }

  /** The image, and what is chosen of its traversals. */
  chosen() {
    const image = this.view.images[this.find("image").selectedIndex];
    const slot = this.find("moved-slot")?.selectedIndex;
    return { image, slot, dimension: this.find("dimension")?.selectedIndex };
  }

  /** Puts the slider of values where the slot is by itself, and draws. */
  restart() {
    const { image, slot, dimension } = this.chosen();
    if (slot !== undefined) {
      const { values } = this.view.dimensions[dimension];
      this.find("value").value = nearest(values, image.own[slot][dimension]);
    }
    return this.draw();
  }

  /** Draws everything; a later call overtakes one that still waits for its pictures. */
  async draw() {
    const turn = ++this.turn;
    this.root.setAttribute("aria-busy", "true");
    const { image, slot, dimension } = this.chosen();
    const stage = image.stages[this.find("stage").value];
    const addresses = [image.picture, stage.appearances, stage.masks];
    if (slot !== undefined) addresses.push(image.traversals[slot][dimension]);
    const [picture, appearances, masks, traversal] = await Promise.all(addresses.map(pixelsOf));
    if (turn !== this.turn) return;
    drawPicture(this.find("input"), picture, 0);
    this.drawStage(image, stage, appearances, masks);
    if (traversal) this.drawTraversal(image.own[slot][dimension], dimension, traversal);
    this.root.setAttribute("aria-busy", "false");
  }

  drawStage(image, stage, appearances, masks) {
    const name = this.view.stages[this.find("stage").value];
    this.find("stage-name").textContent = name;
    this.find("stage").setAttribute("aria-valuetext", name);
    this.find("scores").textContent = stage.scores;
    const on = this.boxes.flatMap((box, slot) => (box.checked ? [slot] : []));
    drawSlots(this.find("recomposed"), appearances, masks, on);
    this.root.querySelectorAll(".slot canvas").forEach((canvas, slot) => {
      canvas.style.borderColor = image.colours[slot];
      drawSlots(canvas, appearances, masks, [slot]);
    });
  }

  drawTraversal(own, dimension, traversal) {
    const { values } = this.view.dimensions[dimension];
    const number = Number(this.find("value").value);
    const text = `${twoDigits(values[number])} (the slot's own: ${twoDigits(own)})`;
    this.find("value-text").textContent = text;
    this.find("value").setAttribute("aria-valuetext", text);
    drawPicture(this.find("traversed"), traversal, number);
  }
}

/** Shows the image that one viewer has chosen, and in others the same one of the same data. */
function showImage(viewer) {
  const { selectedIndex } = viewer.find("image");
  for (const other of viewers.filter(({ view }) => view.data === viewer.view.data)) {
    if (selectedIndex >= other.view.images.length) continue;
    other.find("image").selectedIndex = selectedIndex;
    other.restart();
  }
}

const views = JSON.parse(document.getElementById("views").textContent);
const viewers = views.map((view, number) => {
  return new Viewer(document.getElementById(`viewer-${number}`), view);
});
