"use strict";
// What is chosen on the page, and what is drawn of it.

const RUNS = JSON.parse(document.getElementById("data").textContent).runs;
const at = (id) => document.getElementById(id);
const state = {run: 0, axis: "kept", part: 0, chosen: new Set(), sample: 0, left: 0, right: 0, which: "all"};

function fill(select, choices, value) {
  select.replaceChildren(...choices.map(([key, text]) => new Option(text, key)));
  select.value = String(value);
}

function runName(run) {
  const {task, experiment, title, run: id} = run.about;
  return `${task}: ${experiment} ${id}, ${title.split("\n")[0].split(", ").slice(2).join(", ")}`;
}

function chooseModel(model) {
  const own = RUNS.map((run, number) => [number, run]).filter(([, run]) => run.about.model === model);
  fill(at("run"), own.map(([number, run]) => [number, runName(run)]), own[0][0]);
  chooseRun(own[0][0]);
}

function chooseRun(number) {
  const run = RUNS[number];
  const others = run.samples.cells.map((_, place) => place).filter((place) => !run.scores.methods.find((one) => one.name === run.samples.cells[place].method).reference);
  const answered = others.find((place) => run.samples.samples.some((sample) => sample.cells[place] && sample.cells[place].error === null));
  Object.assign(state, {run: number, part: 0, sample: 0, left: answered ?? 0, right: 0, which: "all"});
  state.chosen = new Set(run.scores.methods.map((method) => method.name));
  if (!measured(run, state.axis)) state.axis = measured(run, "kept") ? "kept" : "entries";
  showCurveControls(run);
  drawCurve(run, state.part, state.axis, state.chosen);
  drawGrid(run);
  showSampleControls(run);
  showSamples();
}

function showCurveControls(run) {
  at("curve-title").textContent = run.about.title.replace("\n", "; ");
  for (const radio of document.querySelectorAll("input[name=axis]")) {
    const known = measured(run, radio.value);
    Object.assign(radio, {disabled: !known, checked: radio.value === state.axis});
    radio.parentElement.classList.toggle("off", !known);
    radio.parentElement.title = known ? "" : "not measured by this run";
  }
  at("methods").replaceChildren(make("legend", "Methods"), ...run.scores.methods.map((method) => {
    const box = Object.assign(make("input"), {type: "checkbox", checked: true, value: method.name});
    const label = make("label");
    label.append(box, ` ${method.name}`);
    return label;
  }));
  fill(at("part"), run.scores.parts.map((part, number) => [number, part.name]), 0);
  at("part-label").hidden = run.scores.parts.length < 2;
}

function showSampleControls(run) {
  const {samples, total, cells} = run.samples;
  const named = cells.map((cell, place) => [place, `${cell.method} at ${cell.asked}`]);
  at("sample-count").textContent = samples.length < total ? `The first ${samples.length} of ${total} samples; --samples shows more.` : `All ${total} samples of this run.`;
  fill(at("left"), named, state.left);
  fill(at("right"), named, state.right);
  at("which").value = state.which;
  at("which").querySelector("[value=wrong]").hidden = !run.scores.bounded;
  drawMap(run, chooseSquare);
}

function chooseSquare(sample, cell) {
  Object.assign(state, {sample, left: cell, which: "all"});
  at("which").value = "all";
  at("left").value = String(cell);
  showSamples();
  at("prompt").scrollIntoView({block: "nearest"});
}

function showSamples() {
  const run = RUNS[state.run], {samples} = run.samples;
  const shown = samples.map((sample, number) => [number, sample]).filter(([, sample]) => passes(run, sample, state.left, state.right, state.which));
  if (shown.length && !shown.some(([number]) => number === state.sample)) state.sample = shown[0][0];
  fill(at("sample"), shown.map(([number, sample]) => [number, sampleName(sample)]), state.sample);
  const place = shown.findIndex(([number]) => number === state.sample);
  at("previous").disabled = place <= 0;
  at("next").disabled = place < 0 || place === shown.length - 1;
  if (shown.length) drawSample(run, samples[state.sample]);
  else drawNone();
}

function sampleName(sample) {
  const {depth, length, set, document: name} = sample.info;
  const words = [depth === undefined ? "" : `depth ${depth}%`, length ? `${told(length, 0)} tokens` : "", set || "", sample.id.includes(name) ? "" : name || ""];
  return [sample.id, ...words.filter(Boolean)].join(", ");
}

function drawSample(run, sample) {
  at("prompt").replaceChildren(promptView(sample));
  at("left-panel").replaceChildren(cellView(sample.cells[state.left]));
  at("right-panel").replaceChildren(cellView(sample.cells[state.right]));
  drawSurvival(run, sample, state.left, state.right);
  drawLikelihood(run, sample, state.left, state.right);
}

function drawNone() {
  at("prompt").replaceChildren(make("p", "No sample is like that: choose other cells, or show all samples.", "note"));
  for (const id of ["left-panel", "right-panel"]) at(id).replaceChildren();
  for (const id of ["survival", "likelihood"]) at(id).hidden = true;
  at("survival-note").textContent = "";
}

function step(by) {
  const options = [...at("sample").options].map((option) => Number(option.value));
  const next = options[options.indexOf(state.sample) + by];
  if (next !== undefined) state.sample = next;
  showSamples();
}

function showBoards() {
  const task = at("board-task").value, size = at("board-size").value;
  for (const board of document.querySelectorAll(".board")) {
    const cells = [...board.querySelectorAll("[data-size]")];
    const has = size === "" || cells.some((cell) => cell.dataset.size === size);
    board.hidden = !has || (task !== "" && RUNS[board.dataset.run].about.task !== task);
    for (const cell of cells) cell.hidden = size !== "" && cell.dataset.size !== size && cell.dataset.size !== "";
    order(board.querySelector("tbody"), size);
  }
}

function order(body, size) {
  const worth = (row, number) => {
    if (row.classList.contains("reference")) return [0, 0, number];
    const cell = size === "" ? null : [...row.cells].find((one) => one.dataset.size === size);
    return cell ? [1, cell.dataset.sort === undefined ? Infinity : -Number(cell.dataset.sort), number] : [1, Infinity, number];
  };
  const rows = [...body.rows].map((row) => [worth(row, Number(row.dataset.place)), row]);
  rows.sort(([a], [b]) => a[0] - b[0] || (a[1] === b[1] ? a[2] - b[2] : a[1] - b[1]));
  body.append(...rows.map(([, row]) => row));
}

function listen() {
  const draw = () => drawCurve(RUNS[state.run], state.part, state.axis, state.chosen);
  const on = (id, act, kind = "change") => at(id).addEventListener(kind, (event) => act(event.target));
  on("model", (select) => chooseModel(select.value));
  on("run", (select) => chooseRun(Number(select.value)));
  on("axis", (radio) => { state.axis = radio.value; draw(); });
  on("part", (select) => { state.part = Number(select.value); draw(); });
  on("methods", (box) => { state.chosen[box.checked ? "add" : "delete"](box.value); draw(); });
  on("which", (select) => { state.which = select.value; showSamples(); });
  on("left", (select) => { state.left = Number(select.value); showSamples(); });
  on("right", (select) => { state.right = Number(select.value); showSamples(); });
  on("sample", (select) => { state.sample = Number(select.value); showSamples(); });
  on("previous", () => step(-1), "click");
  on("next", () => step(1), "click");
  on("map-part", () => drawMap(RUNS[state.run], chooseSquare), "toggle");
  on("board-task", showBoards);
  on("board-size", showBoards);
}

function start() {
  if (!RUNS.length) return;
  const distinct = (values) => [...new Set(values)];
  for (const task of distinct(RUNS.map((run) => run.about.task))) at("board-task").append(new Option(task, task));
  const sizes = distinct(RUNS.flatMap((run) => run.scores.budgets.map((one) => one.asked)));
  for (const size of sizes) at("board-size").append(new Option(size, size));
  for (const body of document.querySelectorAll(".board tbody")) [...body.rows].forEach((row, number) => { row.dataset.place = number; });
  const models = distinct(RUNS.map((run) => run.about.model));
  fill(at("model"), models.map((model) => [model, model]), models[0]);
  listen();
  chooseModel(models[0]);
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
}

window.addEventListener("hashchange", openTarget);
start();
openTarget();
