// Shows before and after on one canvas, at any zoom; x and y are the point of the image in the middle of it. Gradio
// runs this once, with `element`, `props` and `watch`.
const find = (selector) => element.querySelector(selector);
const root = find(".viewer");
const canvas = find("canvas");
const context = canvas.getContext("2d");
const split = find(".split input");
const gain = find(".gain input");
const download = find(".download");
let before, after, name;
let view = "compare";
let zoom = 1; // pixels of the screen per pixel of the image
let x = 0;
let y = 0;
// before and after as they are seen now
const layers = [0, 1].map(() => new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true }));

const scale = () => window.devicePixelRatio;
const fit = () => Math.min(canvas.width / before.naturalWidth, canvas.height / before.naturalHeight);

async function load(url) {
  const image = new Image();
  image.src = new URL(url, document.baseURI);
  await image.decode();
  return image;
}

async function show(value) {
  if (!value) return;
  const [newBefore, newAfter] = await Promise.all([value.before, value.after].map((url) => url && load(url)));
  if (value !== props.value) return; // another one came meanwhile
  const isOther = !before || !value.after;
  [before, after, name] = [newBefore, newAfter, value.name];
  root.hidden = false;
  download.hidden = !after;
  if (after) [download.href, download.download] = [new URL(value.download, document.baseURI), value.file];
  if (isOther) {
    [zoom, x, y] = [1, before.naturalWidth / 2, before.naturalHeight / 2];
    split.value = 500;
  }
  resize();
}

function resize() {
  for (const each of [canvas, layers[0].canvas, layers[1].canvas]) {
    each.width = Math.round(canvas.clientWidth * scale());
    each.height = Math.round(canvas.clientHeight * scale());
  }
  move();
}

// Draws both images anew for a change of zoom or place.
function move(newZoom = zoom, newX = x, newY = y) {
  if (!before || !canvas.width) return;
  zoom = Math.min(Math.max(newZoom, Math.min(fit(), 1)), 32);
  const clamp = (value, size, room) =>
    size * zoom <= room ? size / 2 : Math.min(Math.max(value, room / 2 / zoom), size - room / 2 / zoom);
  x = clamp(newX, before.naturalWidth, canvas.width);
  y = clamp(newY, before.naturalHeight, canvas.height);
  const left = Math.round(canvas.width / 2 - x * zoom);
  const top = Math.round(canvas.height / 2 - y * zoom);
  for (const [i, image] of [before, after ?? before].entries()) {
    layers[i].clearRect(0, 0, canvas.width, canvas.height);
    layers[i].imageSmoothingEnabled = zoom < 1;
    layers[i].imageSmoothingQuality = "high";
    layers[i].drawImage(image, left, top, image.naturalWidth * zoom, image.naturalHeight * zoom);
  }
  draw();
}

// Puts the two on the screen for a change of the split or the view.
function draw() {
  if (!before) return;
  const { width, height } = canvas;
  const edge = after ? Math.round((split.value / 1000) * width) : width;
  const part = (layer, from, to) => {
    if (to > from) context.drawImage(layer.canvas, from, 0, to - from, height, from, 0, to - from, height);
  };
  context.clearRect(0, 0, width, height);
  if (view === "removed" && after) {
    const [noisy, clean] = layers.map((layer) => layer.getImageData(0, 0, width, height));
    for (let i = 0; i < noisy.data.length; i++) {
      if (i % 4 < 3) noisy.data[i] = 128 + gain.value * (noisy.data[i] - clean.data[i]);
    }
    context.putImageData(noisy, 0, 0);
  } else {
    part(layers[0], 0, edge);
    part(layers[1], edge, width);
    if (after) {
      for (const [colour, thickness] of [["black", 4], ["white", 2]]) {
        context.fillStyle = colour;
        context.fillRect(edge - (thickness / 2) * scale(), 0, thickness * scale(), height);
      }
    }
  }
  find(".zoom").textContent = `${Math.round(zoom * 100)} %`;
  find(".gain output").textContent = `Amplified ${gain.value} times; grey is nothing`;
  find(".split").hidden = !after || view !== "compare";
  find(".gain").hidden = !after || view !== "removed";
  for (const button of element.querySelectorAll("[data-view]")) {
    button.disabled = !after;
    button.setAttribute("aria-pressed", button.dataset.view === view);
  }
  canvas.setAttribute(
    "aria-label",
    !after
      ? `${name} as it was sent`
      : view === "compare"
        ? `${name}, before on the left of the line and after on the right`
        : `What was removed from ${name}`,
  );
}

// Zooms about a point of the canvas, which stays where it is.
function zoomAt(factor, px = canvas.width / 2, py = canvas.height / 2) {
  const newZoom = Math.min(Math.max(zoom * factor, Math.min(fit(), 1)), 32);
  const shift = 1 / zoom - 1 / newZoom;
  move(newZoom, x + (px - canvas.width / 2) * shift, y + (py - canvas.height / 2) * shift);
}

const pointers = new Map();
let dragsSplit = false;
const place = (event) => [event.offsetX * scale(), event.offsetY * scale()];
const isAtSplit = (event) =>
  after && view === "compare" && Math.abs(event.offsetX - (split.value / 1000) * canvas.clientWidth) < 16;

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  dragsSplit = pointers.size === 0 && isAtSplit(event);
  pointers.set(event.pointerId, place(event));
});
canvas.addEventListener("pointermove", (event) => {
  canvas.style.cursor = dragsSplit || isAtSplit(event) ? "ew-resize" : "grab";
  const old = pointers.get(event.pointerId);
  if (!old) return;
  const now = place(event);
  pointers.set(event.pointerId, now);
  if (dragsSplit) {
    split.value = (now[0] / canvas.width) * 1000;
    draw();
  } else if (pointers.size === 1) {
    move(zoom, x - (now[0] - old[0]) / zoom, y - (now[1] - old[1]) / zoom);
  } else {
    const [, other] = [...pointers].find(([id]) => id !== event.pointerId);
    const distance = (a, b) => Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1);
    zoomAt(distance(now, other) / distance(old, other), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, (event) => {
    pointers.delete(event.pointerId);
    dragsSplit = false;
  });
}
canvas.addEventListener("dblclick", () => move(zoom === 1 ? fit() : 1));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomAt(Math.exp(-event.deltaY / 400), ...place(event));
});

const zooms = { in: () => zoomAt(1.5), out: () => zoomAt(1 / 1.5), one: () => move(1), fit: () => move(fit()) };
const step = () => (50 * scale()) / zoom;
const keys = {
  "+": zooms.in,
  "=": zooms.in,
  "-": zooms.out,
  1: zooms.one,
  0: zooms.fit,
  ArrowLeft: () => move(zoom, x - step(), y),
  ArrowRight: () => move(zoom, x + step(), y),
  ArrowUp: () => move(zoom, x, y - step()),
  ArrowDown: () => move(zoom, x, y + step()),
};
canvas.addEventListener("keydown", (event) => {
  if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  keys[event.key]();
});
for (const button of element.querySelectorAll("[data-zoom]")) {
  button.addEventListener("click", zooms[button.dataset.zoom]);
}
for (const button of element.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => {
    view = button.dataset.view;
    draw();
  });
}
split.addEventListener("input", draw);
gain.addEventListener("input", draw);
new ResizeObserver(resize).observe(canvas);
watch("value", () => show(props.value));
