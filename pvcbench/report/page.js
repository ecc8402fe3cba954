// What is chosen on the page, and what is shown of it.

const names = at("setting") ? [...at("setting").options].map((option) => option.value) : [];
const state = {name: names[0], run: null, cells: null, axis: "kept", part: 0, chosen: new Set(), sample: 0, left: 0, right: 0, which: "all"};
const seen = {curves: false, samples: false};

function fill(select, choices, value) {
  select.replaceChildren(...choices.map(([key, text]) => new Option(text, key)));
  select.value = String(value);
}

function complain(section, error) {
  at(section).querySelector(".subject").textContent = `This part cannot be shown: ${error.message}`;
}

async function chooseSetting(name) {
  Object.assign(state, {name, run: null, cells: null});
  at("setting").value = name;
  for (const article of document.querySelectorAll(".answer")) article.hidden = article.dataset.setting !== name;
  await Promise.all([seen.curves ? showCurves() : null, seen.samples ? showSampleSection() : null]);
}

async function loadRun() {
  const name = state.name, run = await unpack(`curves-block-${names.indexOf(name)}`);
  if (name !== state.name) return false; // another was chosen meanwhile
  state.run = run;
  return true;
}

async function showCurves() {
  seen.curves = true;
  try {
    if (!(await loadRun())) return;
  } catch (error) {
    complain("curves", error);
    return;
  }
  const {run} = state;
  const few = run.methods.length <= 9 || !run.leaders.length;
  const shown = (method) => few || method.reference || method.leaks || (run.bounded && method.name === "random") || run.leaders.includes(method.name);
  state.part = 0;
  state.chosen = new Set(run.methods.filter(shown).map((method) => method.name));
  if (!measured(run, state.axis)) state.axis = measured(run, "kept") ? "kept" : "entries";
  showCurveControls(run);
  drawCurve(run, state.part, state.axis, state.chosen);
  drawGrid(run);
}

function showCurveControls(run) {
  at("curves").querySelector(".subject").textContent = run.title;
  for (const radio of document.querySelectorAll("input[name=axis]")) {
    const has = measured(run, radio.value);
    Object.assign(radio, {disabled: !has, checked: radio.value === state.axis});
    radio.parentElement.classList.toggle("off", !has);
    radio.parentElement.title = has ? "" : "not measured here";
  }
  at("methods").replaceChildren(make("legend", "Methods"), ...run.methods.map((method) => {
    const box = Object.assign(make("input"), {type: "checkbox", checked: state.chosen.has(method.name), value: method.name});
    const label = make("label");
    label.append(box, swatch(method), ` ${method.name}`);
    return label;
  }));
  for (const [text, choose] of [["all", () => true], ["none", () => false], ["leading", (name) => run.leaders.includes(name) || name === "full"]]) {
    const button = Object.assign(make("button", text), {type: "button"});
    button.addEventListener("click", () => chooseMethods(run, choose));
    at("methods").append(button);
  }
  fill(at("part"), run.parts.map((part, number) => [number, part.name]), 0);
  at("part-label").hidden = run.parts.length < 2;
}

function chooseMethods(run, choose) {
  for (const box of at("methods").querySelectorAll("input")) {
    box.checked = choose(box.value);
    state.chosen[box.checked ? "add" : "delete"](box.value);
  }
  drawCurve(run, state.part, state.axis, state.chosen);
}

async function showSampleSection(method, budget) {
  seen.samples = true;
  const name = state.name;
  at("sample-count").textContent = "Unpacking the samples ...";
  try {
    const cells = await unpack(`cells-block-${names.indexOf(name)}`);
    if (!(await loadRun()) || name !== state.name) return;
    state.cells = cells;
  } catch (error) {
    at("sample-count").textContent = "";
    complain("samples", error);
    return;
  }
  const {run, cells: {cells, samples}} = state;
  const others = cells.map((_, place) => place).filter((place) => !run.methods.find((one) => one.name === cells[place].method).reference);
  const answered = others.find((place) => samples.some((sample) => sample.cells[place] && sample.cells[place].error === null));
  const asked = cells.findIndex((cell) => cell.method === method && cell.budget === budget);
  Object.assign(state, {sample: 0, left: asked >= 0 ? asked : answered ?? 0, right: 0, which: "all"});
  at("samples").querySelector(".subject").textContent = run.title;
  showSampleControls(run);
  showSamples();
}

function showSampleControls(run) {
  const {samples, total, cells} = state.cells;
  const named = cells.map((cell, place) => [place, `${cell.method} at ${cell.asked}`]);
  at("sample-count").textContent = samples.length < total ? `The first ${samples.length} of ${total} samples; --samples shows more.` : `All ${total} samples.`;
  fill(at("left"), named, state.left);
  fill(at("right"), named, state.right);
  at("which").value = state.which;
  at("which").querySelector("[value=wrong]").hidden = !run.bounded;
  drawMap(run, state.cells, chooseSquare);
}

function chooseSquare(sample, cell) {
  Object.assign(state, {sample, left: cell, which: "all"});
  at("which").value = "all";
  at("left").value = String(cell);
  showSamples();
  at("prompt").scrollIntoView({block: "nearest"});
}

function showSamples() {
  const {run, cells: {samples}} = state;
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
  drawSurvival(run, state.cells, sample, state.left, state.right);
  drawLikelihood(run, state.cells, sample, state.left, state.right);
}

function drawNone() {
  at("prompt").replaceChildren(make("p", "No sample is like that.", "note"));
  for (const id of ["left-panel", "right-panel"]) at(id).replaceChildren();
  for (const id of ["survival-part", "likelihood-part"]) at(id).hidden = true;
  at("survival-note").textContent = "";
}

function step(by) {
  const options = [...at("sample").options].map((option) => Number(option.value));
  const next = options[options.indexOf(state.sample) + by];
  if (next !== undefined) state.sample = next;
  showSamples();
}

function listen() {
  const redraw = () => state.run && drawCurve(state.run, state.part, state.axis, state.chosen);
  const on = (id, act, kind = "change") => at(id).addEventListener(kind, (event) => act(event.target));
  on("setting", (select) => chooseSetting(select.value));
  on("axis", (radio) => { state.axis = radio.value; redraw(); });
  on("part", (select) => { state.part = Number(select.value); redraw(); });
  on("methods", (box) => { state.chosen[box.checked ? "add" : "delete"](box.value); redraw(); });
  const onSamples = (id, act, kind) => on(id, (target) => state.cells && act(target), kind);
  onSamples("which", (select) => { state.which = select.value; showSamples(); });
  onSamples("left", (select) => { state.left = Number(select.value); showSamples(); });
  onSamples("right", (select) => { state.right = Number(select.value); showSamples(); });
  onSamples("sample", (select) => { state.sample = Number(select.value); showSamples(); });
  onSamples("previous", () => step(-1), "click");
  onSamples("next", () => step(1), "click");
  onSamples("map-part", () => drawMap(state.run, state.cells, chooseSquare), "toggle");
}

async function openTarget() {
  const [place, ...words] = location.hash.slice(1).split("/");
  if (place === "samples" && words.length === 3) {
    const [name, method, budget] = words.map(decodeURIComponent);
    if (!names.includes(name)) return;
    seen.samples = true;
    if (state.name !== name) await chooseSetting(name);
    if (!seen.curves) await showCurves(); // which stand above the samples and would move them
    await showSampleSection(method, budget);
    at("samples").scrollIntoView();
    at("samples-title").focus({preventScroll: true});
    return;
  }
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.querySelector("summary").focus();
  }
}

function start() {
  for (const part of document.querySelectorAll("details.pictures")) part.addEventListener("toggle", () => part.open && showPictures(part));
  if (names.length) {
    startBoard();
    listen();
    if (at("setting").value !== state.name) chooseSetting(at("setting").value); // a browser that goes back restores it
    const shows = {curves: showCurves, samples: () => state.cells === null && showSampleSection()};
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting || seen[entry.target.id]) continue;
        watch.unobserve(entry.target);
        shows[entry.target.id]();
      }
    }, {rootMargin: "300px"});
    for (const id of Object.keys(shows)) watch.observe(at(id));
  }
  window.addEventListener("hashchange", openTarget);
  openTarget();
}

start();
