"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const media = JSON.parse(document.getElementById("media").textContent);
const COLOURS = ["#7c7f78", "#0e9f82", "#d97706", "#6d5bd0", "#c2417c", "#2f80c9", "#8a9a1b", "#b4532a", "#4b9aa8", "#9b59b6"];
const colour = (index) => COLOURS[index % COLOURS.length];
const rows = data.variants;
const make = (tag, set = {}, ...inside) => {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(set)) key in made && key !== "list" ? (made[key] = value) : made.setAttribute(key, value);
  made.append(...inside.filter((each) => each !== null && each !== undefined));
  return made;
};
const at = (id) => document.getElementById(id);
const number = (value, digits) => (value === null || value === undefined ? "–" : Number(value).toFixed(digits));
const reach = (value, digits) => (value && value.high !== null ? "± " + number(value.high - value.mean, digits) : "");
const BAND = { "same trajectory": "same", "scene kept": "kept", diverged: "gone" };
const dot = (index) => { const made = make("span", { className: "dot" }); made.style.background = colour(index); return made; };

// ---- the table at the top
const heads = ["", "against " + data.baseline, "seconds", "in attention", "attention work"];
const value = (name, mean) => (name === "psnr" && mean >= 99.995 ? "equal" : number(mean, data.metrics[name].digits));
const shown = Object.keys(data.metrics).filter((name) => rows.some((row) => row.summary[name]));
function summary() {
  const table = make("table", { className: "summary" });
  const titles = [...heads, ...shown.map((name) => data.metrics[name].title + (data.metrics[name].unit ? ` (${data.metrics[name].unit})` : ""))];
  table.append(make("thead", {}, make("tr", {}, ...titles.map((title, i) => {
    const cell = make("th", {}, title);
    if (i >= heads.length) cell.title = data.metrics[shown[i - heads.length]].help;
    return cell;
  }))));
  const body = make("tbody");
  rows.forEach((row, index) => {
    const found = row.summary, base = index === 0;
    const cell = (title, text, more) => make("td", { "data-title": title }, text, more ? make("small", {}, more) : null);
    const chips = make("td", { className: "bands", "data-title": heads[1] });
    if (row.failed) chips.append(make("span", { className: "chip gone" }, "failed"));
    else if (base) chips.append(make("span", { className: "chip plain" }, "baseline"));
    else for (const [name, count] of Object.entries(row.bands)) chips.append(make("span", { className: "chip " + BAND[name] }, (row.runs.length > 1 ? count + " × " : "") + name), " ");
    const line = make("tr", {},
      make("td", {}, make("div", { className: "who" }, dot(index), make("div", {}, make("b", {}, row.name), make("small", {}, row.what === row.name ? "" : row.what)))),
      chips,
      found.seconds ? cell(heads[2], number(found.seconds.mean, 2), faster(found.speedup) || reach(found.seconds, 2)) : make("td"),
      found.attention_seconds ? cell(heads[3], number(found.attention_seconds.mean, 2), faster(found.attention_speedup)) : make("td"),
      work(found));
    for (const name of shown) {
      const told = found[name], metric = data.metrics[name];
      const title = metric.title;
      line.append(told ? cell(title, value(name, told.mean), reach(told, metric.digits) + (name === "judged" && found.judged_change ? ` (${found.judged_change.mean >= 0 ? "+" : ""}${number(found.judged_change.mean, 0)})` : "")) : make("td"));
    }
    body.append(line);
  });
  const other = data.another_seed;
  if (Object.keys(other).length) {
    const line = make("tr", {}, make("td", {}, make("div", { className: "who" }, make("div", {}, make("b", {}, data.baseline + ", another seed"), make("small", {}, "the scale: nothing but the noise differs")))), ...heads.slice(1).map(() => make("td")));
    for (const name of shown) line.append(other[name] ? make("td", { "data-title": data.metrics[name].title }, number(other[name].mean, data.metrics[name].digits), reach(other[name], data.metrics[name].digits) ? make("small", {}, reach(other[name], data.metrics[name].digits)) : null) : make("td"));
    body.append(line);
  }
  table.append(body);
  at("summary").append(table);
}
// A ratio of one run has no error, and one whose interval holds 1 shows no difference: both are said.
function faster(found) {
  if (!found) return "";
  if (found.high === null) return number(found.mean, 2) + " × as fast (one run)";
  const span = `${number(found.low, 2)}–${number(found.high, 2)}`;
  return found.low <= 1 && found.high >= 1 ? `no difference shown (${span} × as fast)` : number(found.mean, 2) + ` × as fast (${span})`;
}
function work(found) {
  const dense = found.flops_dense, done = found.flops_executed;
  if (!dense) return make("td");
  const base = rows[0].summary.flops_executed;
  if (!done) return make("td", { "data-title": heads[4] }, "depends on data", make("small", {}, "not counted"));
  const share = base ? done.mean / base.mean : done.mean / dense.mean;
  const bar = make("span", { className: "bar" }, make("i")); bar.firstChild.style.width = Math.min(100, 100 * share) + "%";
  return make("td", { "data-title": heads[4] }, number(100 * share, 0) + " %", bar, make("small", {}, flops(done.mean)));
}
const flops = (count) => count >= 1e15 ? number(count / 1e15, 2) + " PFLOP" : count >= 1e12 ? number(count / 1e12, 2) + " TFLOP" : number(count / 1e9, count < 1e10 ? 2 : 1) + " GFLOP";

// ---- players
let scene = 0, left = 0, right = Math.min(1, rows.length - 1), mode = "wipe", frame = 0, playing = false, split = 0.5, metric = null;
const loaded = new Map();
async function picture(url) { const image = new Image(); image.src = url; await image.decode(); return image; }
async function clip(index) {
  const key = scene + ":" + index;
  if (!loaded.has(key)) {
    const found = media[scene].clips[rows[index].name];
    loaded.set(key, found ? Promise.all(found.frames.map(picture)) : Promise.resolve(null));
  }
  return loaded.get(key);
}
const clips = [];
const frames = () => Math.max(1, ...clips.filter(Boolean).map((each) => each.length));
const still = (each) => each && each[Math.min(frame, each.length - 1)];
function paint(canvas, image) {
  if (!image) return;
  if (canvas.width !== image.width || canvas.height !== image.height) { canvas.width = image.width; canvas.height = image.height; canvas.classList.toggle("small", image.width <= 320); }
  canvas.getContext("2d").drawImage(image, 0, 0);
}
function pixels(image) {
  const canvas = make("canvas", { width: image.width, height: image.height }), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, image.width, image.height);
}
const RAMP = [[16, 16, 15], [18, 78, 69], [34, 151, 127], [174, 228, 211], [255, 247, 214]];
function heat(canvas, one, other) {
  if (!one || !other || one.width !== other.width || one.height !== other.height) return;
  const a = pixels(one), b = pixels(other), out = new ImageData(a.width, a.height);
  for (let i = 0; i < a.data.length; i += 4) {
    const apart = (Math.abs(a.data[i] - b.data[i]) + Math.abs(a.data[i + 1] - b.data[i + 1]) + Math.abs(a.data[i + 2] - b.data[i + 2])) / 3;
    const level = Math.sqrt(Math.min(1, apart / 96)) * 4, low = Math.min(3, Math.floor(level)), part = level - low;
    for (let c = 0; c < 3; c++) out.data[i + c] = RAMP[low][c] * (1 - part) + RAMP[low + 1][c] * part;
    out.data[i + 3] = 255;
  }
  canvas.width = a.width; canvas.height = a.height; canvas.classList.toggle("small", a.width <= 320);
  canvas.getContext("2d").putImageData(out, 0, 0);
}
const stage = {};
function buildStage() {
  const host = at("stage"); host.replaceChildren();
  const name = (index) => rows[index].name;
  if (mode === "wipe") {
    stage.a = make("canvas"); stage.line = make("div", { className: "line" });
    const box = make("div", { className: "wipe" }, stage.a, stage.line, make("span", { className: "tag" }, name(left)), make("span", { className: "tag" }, name(right)));
    box.children[2].style.left = "8px"; box.children[3].style.right = "8px";
    const move = (event) => { const area = stage.a.getBoundingClientRect(); split = Math.min(1, Math.max(0, (event.clientX - area.left) / area.width)); draw(); };
    box.onpointerdown = (event) => { box.setPointerCapture(event.pointerId); move(event); box.onpointermove = move; };
    box.onpointerup = box.onpointercancel = () => { box.onpointermove = null; };
    box.tabIndex = 0; box.setAttribute("role", "slider"); box.setAttribute("aria-label", "wipe between the two");
    box.onkeydown = (event) => { const by = { ArrowLeft: -0.05, ArrowRight: 0.05 }[event.key]; if (by) { split = Math.min(1, Math.max(0, split + by)); draw(); event.preventDefault(); } };
    host.append(box);
  } else {
    stage.a = make("canvas"); stage.b = make("canvas");
    const second = mode === "difference" ? "difference (bright = 96 of 255 or more)" : name(right);
    const first = mode === "difference" ? name(right) : name(left);
    host.append(make("div", { className: "pair" }, make("figure", {}, stage.a, make("figcaption", {}, first)), make("figure", {}, stage.b, make("figcaption", {}, second))));
  }
}
function draw() {
  const one = still(clips[left]), other = still(clips[right]);
  if (mode === "wipe" && one) {
    paint(stage.a, one);
    if (other) {
      const edge = Math.round(split * one.width), pen = stage.a.getContext("2d");
      if (edge < one.width) pen.drawImage(other, edge * other.width / one.width, 0, other.width - edge * other.width / one.width, other.height, edge, 0, one.width - edge, one.height);
      stage.line.style.left = 100 * split + "%";
    }
  } else if (mode === "side") { paint(stage.a, one); paint(stage.b, other); }
  else if (mode === "difference") { paint(stage.a, other); heat(stage.b, one, other); }
  tiles.forEach((canvas, index) => paint(canvas, still(clips[index])));
  at("frame").value = frame; at("count").textContent = `${frame + 1} / ${frames()}`;
  for (const line of document.querySelectorAll(".head")) { const x = line.dataset.from * 1 + (frames() > 1 ? frame / (frames() - 1) : 0) * line.dataset.width; line.setAttribute("x1", x); line.setAttribute("x2", x); }
}
const tiles = [];
function buildAll() {
  const host = at("all"); host.replaceChildren(); tiles.length = 0;
  rows.forEach((row, index) => {
    const canvas = make("canvas"); tiles.push(canvas);
    const run = row.runs.find((each) => each.prompt === media[scene].prompt && each.seed === media[scene].seed);
    const told = run ? (index && run.values.ssim !== undefined ? `SSIM ${number(run.values.ssim, 3)}, ` : "") + number(run.seconds, 1) + " s" : "no output";
    const box = make("figure", { tabIndex: 0 }, canvas, make("figcaption", {}, make("b", {}, row.name), make("br"), told, run && run.band && index ? make("span", {}, ", " + run.band) : null));
    const sound = media[scene].clips[row.name] && media[scene].clips[row.name].sound;
    if (sound) { const voice = make("audio", { controls: true, src: sound, preload: "auto" }); voice.onplay = () => { listen(voice); }; box.append(voice); }
    const choose = () => { if (index !== left) { right = index; at("b").value = index; start(); } };
    box.onclick = (event) => { if (event.target.tagName !== "AUDIO") choose(); };
    box.onkeydown = (event) => { if (event.key === "Enter") choose(); };
    host.append(box);
  });
}
let voice = null;
function listen(chosen) { for (const each of document.querySelectorAll("audio")) if (each !== chosen) each.pause(); voice = chosen; play(true); }
function mark() { document.querySelectorAll("#all figure").forEach((box, index) => box.classList.toggle("chosen", index === right)); }
async function start() {
  mark(); buildStage();
  const now = scene;
  const found = await Promise.all(rows.map((_, index) => clip(index)));
  if (now !== scene) return;
  clips.splice(0, clips.length, ...found);
  const count = frames();
  at("time").hidden = count < 2; at("frame").max = count - 1; frame = Math.min(frame, count - 1);
  draw();
}
let last = 0, carried = 0;
function tick(now) {
  if (!playing) return;
  const rate = media[scene].fps || 8;
  if (voice && !voice.paused) frame = Math.min(frames() - 1, Math.floor(voice.currentTime * rate));
  else { carried += (now - last) / 1000 * rate; if (carried >= 1) { frame = (frame + Math.floor(carried)) % frames(); carried %= 1; } }
  last = now; draw(); requestAnimationFrame(tick);
}
function play(on) {
  if (!on && voice) voice.pause();
  if (on === playing) return;
  playing = on; at("play").textContent = on ? "Pause" : "Play"; last = performance.now(); carried = 0;
  if (on) requestAnimationFrame(tick);
}
function controls() {
  const fill = (id, options, value, change) => { const box = at(id); options.forEach((text, index) => box.append(make("option", { value: index }, text))); box.value = value; box.onchange = () => change(Number(box.value)); };
  fill("prompt", media.map((each) => `${each.prompt || "(empty prompt)"} · seed ${each.seed}`), 0, (value) => { scene = value; clips.length = 0; buildAll(); start(); plots(); });
  fill("a", rows.map((row) => row.name), left, (value) => { left = value; start(); });
  fill("b", rows.map((row) => row.name), right, (value) => { right = value; start(); });
  for (const button of document.querySelectorAll("#mode button")) button.onclick = () => {
    mode = button.dataset.mode;
    document.querySelectorAll("#mode button").forEach((each) => each.setAttribute("aria-pressed", each === button));
    buildStage(); draw();
  };
  at("play").onclick = () => play(!playing);
  at("frame").oninput = () => { play(false); frame = Number(at("frame").value); draw(); };
}

// ---- plots
const svg = (tag, set, ...inside) => { const made = document.createElementNS("http://www.w3.org/2000/svg", tag); for (const [key, value] of Object.entries(set)) made.setAttribute(key, value); made.append(...inside); return made; };
function ticks(low, high) {
  const raw = (high - low) / 4 || 1, unit = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map((each) => each * unit).find((each) => each >= raw) || raw;
  const found = []; for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return [found, Math.max(0, Math.min(4, -Math.floor(Math.log10(step))))];
}
function plot(title, lines, head) {
  const values = lines.flatMap((line) => line.values); if (!values.length) return null;
  let low = Math.min(...values), high = Math.max(...values); if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
  const pad = (high - low) * 0.06; low -= pad; high += pad;
  const W = 460, H = 210, L = 46, R = 10, T = 8, B = 28, count = Math.max(...lines.map((line) => line.values.length));
  const x = (i) => L + (count > 1 ? i / (count - 1) : 0.5) * (W - L - R), y = (value) => T + (high - value) / (high - low) * (H - T - B);
  const page = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  const [marks, digits] = ticks(low, high);
  for (const value of marks) page.append(svg("line", { x1: L, x2: W - R, y1: y(value), y2: y(value), stroke: "var(--line)" }), svg("text", { x: L - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)));
  for (let i = 0; i < count; i += Math.max(1, Math.ceil(count / 8))) page.append(svg("text", { x: x(i), y: H - 10, "text-anchor": "middle" }, String(i + 1)));
  if (head) page.append(svg("line", { class: "head", x1: L, x2: L, y1: T, y2: H - B, stroke: "var(--soft)", "stroke-dasharray": "3 3", "data-from": L, "data-width": W - L - R }));
  for (const line of lines) page.append(svg("polyline", { points: line.values.map((value, i) => `${x(i)},${y(value)}`).join(" "), fill: "none", stroke: line.colour, "stroke-width": 2, "stroke-linejoin": "round" }), ...(count === 1 ? [svg("circle", { cx: x(0), cy: y(line.values[0]), r: 4, fill: line.colour })] : []));
  return make("div", { className: "card" }, make("b", {}, title), page);
}
function plots() {
  const host = at("plots"); host.replaceChildren();
  const place = media[scene] || { prompt: data.prompts[0], seed: data.seeds[0] };
  const runs = rows.map((row) => row.runs.find((run) => run.prompt === place.prompt && run.seed === place.seed));
  const of = (kind, name) => rows.map((row, index) => ({ colour: colour(index), values: (runs[index] && runs[index][kind][name]) || [] })).filter((line) => line.values.length);
  for (const name of Object.keys(data.metrics)) {
    const lines = of("per_frame", name), meta = data.metrics[name];
    if (lines.length && lines[0].values.length > 1) host.append(plot(`${meta.title}${meta.unit ? " (" + meta.unit + ")" : ""}, frame by frame`, lines, true));
  }
  const steps = of("per_step", "latent_error");
  if (steps.length) host.append(plot("Latent error, step by step", steps, false));
  const any = host.children.length > 0;
  at("curves").hidden = !any;
  at("legend").replaceChildren(...rows.slice(1).map((row, index) => make("span", {}, dot(index + 1), row.name)));
}

// ---- the rest
function foot() {
  const masks = at("masks");
  for (const [name, pictures] of Object.entries(JSON.parse(at("drawn").textContent))) for (const [words, url] of pictures)
    masks.append(make("details", { className: "card" }, make("summary", {}, name === words ? name : `${name}: ${words}`), make("div", {}, make("img", { src: url, alt: "what every token sees under " + words, loading: "lazy" }))));
  at("pictures").hidden = !masks.children.length;
  const told = [...data.told, ...rows.flatMap((row) => row.told.map((line) => `${row.name}: ${line}`))];
  at("told").replaceChildren(...[...new Set(told)].map((line) => make("p", { className: "note" }, line)));
  const missing = new Map();
  rows.forEach((row) => row.runs.forEach((run) => Object.entries(run.missing).forEach(([what, why]) => missing.set(`${row.name}: ${what} ${why}`, 1))));
  at("told").append(...[...missing.keys()].map((line) => make("p", { className: "note" }, line)));
  const alarm = at("alarm");
  if (!data.finished) alarm.append(make("p", {}, make("b", {}, "Not finished. "), "The comparison was ended early, or a part of it failed; what was made until then is here."));
  rows.filter((row) => row.failed).forEach((row) => alarm.append(make("p", {}, make("b", {}, `${row.name} failed`), ` after ${row.runs.length} of ${data.prompts.length * data.seeds.length} outputs: ${row.failed}`)));
  alarm.hidden = !alarm.children.length;
}
summary(); foot(); plots();
if (media.length) { controls(); buildAll(); start(); } else at("viewer").hidden = true;
