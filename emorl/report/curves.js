// The curves of training, drawn into the plots of `curves.html`, for the steps that are chosen.

const [WIDTH, HEIGHT] = [360, 200]; // as viewBox says
const [LEFT, TOP, RIGHT, BOTTOM] = [48, 6, 8, 20]; // margins
const INNER = [WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM];
const [MOST_DOTS, TICKS, LEAST_DRAG] = [30, 6, 0.02];
const FAR = 1e6; // from the plot; SVG has no numbers beyond float32

/** Adds an SVG element. */
function add(parent, kind, attributes) {
  const element = document.createElementNS(parent.namespaceURI, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return parent.appendChild(element);
}

/** Least and largest value that is shown, with a margin. */
function range(panel, from, to) {
  const start = to > panel.settled ? Math.max(from, panel.settled) : from;
  let [low, high] = [Infinity, -Infinity];
  for (const { steps, values } of panel.curves) {
    values.forEach((value, i) => {
      if (steps[i] < start || steps[i] > to) return;
      [low, high] = [Math.min(low, value), Math.max(high, value)];
    });
  }
  if (low > high) return [0, 1];
  const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - margin, high + margin];
}

/** Round numbers from low to high, about as many as TICKS. */
function ticks(low, high) {
  const rough = (high - low) / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step);
  const count = Math.min(Math.floor(high / step) - first + 1, 3 * TICKS);
  return Array.from({ length: Math.max(count, 0) }, (_, i) => (first + i) * step);
}

function label(number) {
  const size = Math.abs(number);
  if (size >= 1e4 && size < 1e12) {
    return Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(number);
  }
  return String(Number(number.toPrecision(4)));
}

function drawAxes(svg, [from, to], [low, high], place) {
  for (const value of ticks(low, high)) {
    const y = place(from, value)[1];
    add(svg, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "grid" });
    add(svg, "text", { x: LEFT - 4, y: y + 3, "text-anchor": "end" }).textContent = label(value);
  }
  for (const step of ticks(from, to)) {
    const [x, y] = [place(step, low)[0], HEIGHT - 6];
    add(svg, "text", { x, y, "text-anchor": "middle" }).textContent = label(step);
  }
}

function drawCurve(inner, { steps, values, smooth, run, colour }, place, colours) {
  const line = (numbers, style) => {
    const points = numbers.map((value, i) => place(steps[i], value).map((n) => n.toFixed(1)));
    add(inner, "polyline", { points: points.join(" "), stroke: colours[colour], class: style });
    return points;
  };
  if (smooth) line(values, "raw");
  const points = line(smooth ?? values, run ? "dashed" : "solid");
  if (points.length > MOST_DOTS) return;
  for (const [cx, cy] of points) add(inner, "circle", { cx, cy, r: 2, fill: colours[colour] });
}

function drawPlot(svg, panel, from, to, colours) {
  svg.replaceChildren();
  const [low, high] = range(panel, from, to);
  const place = (step, value) => [
    LEFT + (INNER[0] * (step - from)) / (to - from),
    Math.min(Math.max(TOP + (INNER[1] * (high - value)) / (high - low), -FAR), FAR),
  ];
  drawAxes(svg, [from, to], [low, high], place);
  const box = { x: LEFT, y: TOP, width: INNER[0], height: INNER[1] };
  const inner = add(svg, "svg", { ...box, viewBox: Object.values(box).join(" ") });
  for (const curve of panel.curves) drawCurve(inner, curve, place, colours);
}

/** The share of the steps shown that lies left of the pointer, from 0 to 1. */
function shareAt(svg, event) {
  const { left, width } = svg.getBoundingClientRect();
  const x = ((event.clientX - left) * WIDTH) / width;
  return Math.min(Math.max((x - LEFT) / INNER[0], 0), 1);
}

/** Calls `choose(first, last)` with the shares of the steps between which a plot is dragged. */
function listenForDrags(svg, choose) {
  let first, band;
  svg.addEventListener("pointerdown", (event) => {
    svg.setPointerCapture(event.pointerId);
    first = shareAt(svg, event);
    band = add(svg, "rect", { y: TOP, height: INNER[1], class: "band" });
  });
  svg.addEventListener("pointermove", (event) => {
    const last = shareAt(svg, event);
    band?.setAttribute("x", LEFT + INNER[0] * Math.min(first, last));
    band?.setAttribute("width", INNER[0] * Math.abs(last - first));
  });
  svg.addEventListener("pointerup", (event) => {
    const shares = [first, shareAt(svg, event)].sort((a, b) => a - b);
    band?.remove();
    band = undefined;
    if (shares[1] - shares[0] >= LEAST_DRAG) choose(...shares);
  });
  svg.addEventListener("pointercancel", () => {
    band?.remove();
    band = undefined;
  });
}

function start({ panels, colours }) {
  const zoom = document.getElementById("zoom");
  const [from, to] = zoom.querySelectorAll("input");
  const plots = [...document.querySelectorAll(".plot svg")];
  const last = Math.max(1, ...panels.flatMap(({ curves }) => curves.map(({ steps }) => steps.at(-1))));
  const least = last / 200; // steps that are shown

  const show = (first, end) => {
    const low = Math.max(0, Math.min(first, last - least));
    const high = Math.min(last, Math.max(end, low + least));
    [from.value, to.value] = [low, high];
    const text = `steps ${Math.round(low)} to ${Math.round(high)}`;
    zoom.querySelector("output").textContent = text;
    plots.forEach((svg, i) => drawPlot(svg, panels[i], low, high, colours));
  };
  for (const input of [from, to]) [input.min, input.max, input.step] = [0, last, "any"];
  from.addEventListener("input", () => show(Number(from.value), Number(to.value)));
  to.addEventListener("input", () => {
    show(Math.min(Number(from.value), Number(to.value) - least), Number(to.value));
  });
  zoom.querySelector("button").addEventListener("click", () => show(0, last));
  for (const svg of plots) {
    listenForDrags(svg, (first, end) => {
      const [low, width] = [Number(from.value), Number(to.value) - Number(from.value)];
      show(low + first * width, low + end * width);
    });
  }
  show(0, last);
}

start(JSON.parse(document.getElementById("plots").textContent));
