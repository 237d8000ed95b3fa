// The page: sends an image to v1/detect once, with a low threshold, and filters the answer by the slider.
"use strict";

const byId = (id) => document.getElementById(id);
const threshold = byId("threshold");
const state = { classes: [], answer: null, name: "", hidden: new Set(), request: 0, abort: null };

// The colors of `efficientdet predict`: hues a golden angle apart.
function colour(label) {
  const hue = ((0.58 + label * 0.3819660112501051) % 1) * 6;
  const [saturation, value] = [[0.85, 1.0], [0.6, 1.0], [0.9, 0.75]][Math.floor(label / 8) % 3];
  return [5, 3, 1].map((shift) => {
    const place = (shift + hue) % 6;
    return Math.round(255 * value * (1 - saturation * Math.max(0, Math.min(place, 4 - place, 1))));
  });
}

function ink(rgb) {
  const [red, green, blue] = rgb.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

function paint(element, name) {
  const rgb = colour(Math.max(0, state.classes.indexOf(name)));
  element.style.setProperty("--colour", `rgb(${rgb.join(" ")})`);
  element.style.setProperty("--ink", ink(rgb));
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const percent = (score) => `${Math.round(100 * score)}%`;

function aboveThreshold() {
  const least = Number(threshold.value);
  return state.answer ? state.answer.images[0].detections.filter((found) => found.score >= least) : [];
}

function shown() {
  return aboveThreshold().filter((found) => !state.hidden.has(found.class));
}

function showBoxes(detections) {
  const { width, height } = state.answer.images[0];
  const boxes = detections.map((found, place) => {
    const { x1, y1, x2, y2 } = found.box;
    const box = make("div", "box");
    const style = { left: x1 / width, top: y1 / height, width: (x2 - x1) / width, height: (y2 - y1) / height };
    for (const [name, share] of Object.entries(style)) box.style[name] = `${100 * share}%`;
    box.style.zIndex = String(detections.length - place);
    if (y1 / height < 0.07) box.classList.add("inside");
    if (x1 / width > 0.75) box.classList.add("right");
    paint(box, found.class);
    box.append(make("span", "tag", `${found.class} ${percent(found.score)}`));
    return box;
  });
  byId("boxes").replaceChildren(...boxes);
  return boxes;
}

function showList(detections, boxes) {
  const rows = detections.map((found, place) => {
    const row = make("button", "row");
    row.type = "button";
    row.append(make("span", "swatch"), make("span", "name", found.class), make("span", "score", percent(found.score)));
    paint(row, found.class);
    const light = (on) => boxes[place].classList.toggle("lit", on);
    row.addEventListener("focus", () => light(true));
    row.addEventListener("blur", () => light(false));
    row.addEventListener("mouseenter", () => light(true));
    row.addEventListener("mouseleave", () => light(document.activeElement === row));
    const item = document.createElement("li");
    item.append(row);
    return item;
  });
  byId("list").replaceChildren(...rows);
}

function showChips() {
  const counts = new Map();
  for (const found of aboveThreshold()) counts.set(found.class, (counts.get(found.class) || 0) + 1);
  for (const name of state.hidden) if (!counts.has(name)) counts.set(name, 0);
  const focused = document.activeElement && document.activeElement.dataset.name;
  const chips = [...counts].sort().map(([name, count]) => {
    const chip = make("button", "chip", `${name} ${count}`);
    chip.type = "button";
    chip.dataset.name = name;
    chip.setAttribute("aria-pressed", String(!state.hidden.has(name)));
    paint(chip, name);
    chip.addEventListener("click", () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      show();
    });
    return chip;
  });
  byId("chips").replaceChildren(...chips);
  byId("classes").hidden = chips.length < 2;
  const again = chips.find((chip) => chip.dataset.name === focused);
  if (again) again.focus();
}

function show() {
  byId("value").textContent = percent(threshold.value);
  threshold.setAttribute("aria-valuetext", percent(threshold.value));
  byId("download").disabled = !state.answer;
  if (!state.answer) return;
  const detections = shown();
  showList(detections, showBoxes(detections));
  showChips();
  byId("count").textContent = `${detections.length} detection${detections.length === 1 ? "" : "s"}`;
  byId("nothing").hidden = detections.length > 0;
  byId("nothing").textContent = "No detections at this threshold.";
}

function fail(message) {
  byId("error").textContent = message;
  byId("error").hidden = !message;
  if (message) byId("status").textContent = "";
}

function forget() {
  state.answer = null;
  state.hidden.clear();
  byId("boxes").replaceChildren();
  byId("list").replaceChildren();
  byId("chips").replaceChildren();
  byId("classes").hidden = true;
  byId("count").textContent = "Detections";
  byId("nothing").hidden = false;
  byId("nothing").textContent = "No detections yet.";
  show();
}

function showImage(file) {
  const image = byId("image");
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = `Image ${file.name}`;
  byId("figure").hidden = false;
  document.body.classList.add("filled");
  document.querySelector("label[for=file]").textContent = "Choose another";
}

async function detect(file) {
  if (state.abort) state.abort.abort();
  const request = ++state.request;
  const abort = (state.abort = new AbortController());
  forget();
  fail("");
  state.name = file.name;
  showImage(file);
  document.body.classList.add("busy");
  byId("status").textContent = "Detecting…";
  const began = performance.now();
  try {
    const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
    const answer = await fetch(`v1/detect?score_threshold=${threshold.min}`, {
      method: "POST",
      headers: { "Content-Type": type },
      body: file,
      signal: abort.signal,
    });
    const content = await answer.json();
    if (request !== state.request) return;
    if (!answer.ok) return fail(content.detail);
    state.answer = content;
    const { width, height } = content.images[0];
    const seconds = ((performance.now() - began) / 1000).toFixed(2);
    byId("status").textContent = `${file.name}, ${width} × ${height} pixels, ${seconds} s`;
    show();
  } catch (error) {
    if (request === state.request && error.name !== "AbortError") fail("Cannot reach the server.");
  } finally {
    if (request === state.request) document.body.classList.remove("busy");
  }
}

function download() {
  const { name, detections, ...rest } = state.answer.images[0];
  const content = {
    ...state.answer,
    score_threshold: Number(threshold.value),
    images: [{ name: state.name, ...rest, detections: shown() }],
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  link.download = `${state.name.replace(/\.[^.]*$/, "") || "detections"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function take(files) {
  const file = [...files].find((each) => each.type.startsWith("image/")) || files[0];
  if (file) detect(file);
}

async function begin() {
  threshold.addEventListener("input", show);
  byId("download").addEventListener("click", download);
  byId("file").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = "";
  });
  byId("image").addEventListener("load", ({ target }) => {
    byId("canvas").style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
    byId("canvas").style.setProperty("--width", `${target.naturalWidth}px`);
  });
  byId("image").addEventListener("error", () => {
    byId("figure").hidden = true;
    document.body.classList.remove("filled");
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  let depth = 0;
  const over = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    take(event.dataTransfer.files);
  });
  show();
  try {
    const model = await (await fetch("v1/model")).json();
    state.classes = model.classes;
    threshold.value = model.score_threshold;
    byId("model").textContent = model.model;
    document.title = `EfficientDet: ${model.model}`;
    const { max_upload_mb: size, max_megapixels: pixels } = model.limits;
    byId("limits").textContent = `JPEG, PNG, WebP, GIF, BMP or TIFF, up to ${size} MB and ${pixels} million pixels`;
    document.body.dataset.ready = "yes";
    show();
  } catch {
    fail("Cannot reach the server.");
  }
}

begin();
