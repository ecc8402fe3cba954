"use strict";
// One sample at a time: its prompt, its gold answers, and what two cells of the run made of it, side by side.

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text; // never as markup: models write what they like
  if (name) element.className = name;
  return element;
}

function terms(pairs) {
  const list = make("dl");
  for (const [term, value] of pairs) list.append(make("dt", term), make("dd", value));
  return list;
}

function promptView(sample) {
  const view = make("div");
  const info = Object.entries(sample.info).filter(([, value]) => value === null || typeof value !== "object");
  const facts = [["sample", `${sample.id}, ${told(sample.tokens, 0)} tokens`], ["what", info.map(([name, value]) => `${name}: ${value}`).join(", ") || "-"]];
  if (sample.prompt && sample.prompt.question) facts.push(["question", sample.prompt.question]);
  if (sample.answers.length) facts.push(["gold", sample.answers.join(" | ")]);
  view.append(terms(facts));
  view.append(sample.prompt ? excerpt(sample.prompt.pieces, sample.tokens) : make("p", "prompt not stored by this run", "note"));
  return view;
}

function excerpt(pieces, tokens) {
  const view = make("div", undefined, "excerpt");
  let reached = 0;
  const gap = (count) => view.append(make("span", ` [... ${told(count, 0)} tokens ...] `, "gap"));
  for (const piece of pieces) {
    if (piece.from > reached) gap(piece.from - reached);
    const part = make(piece.span ? "mark" : "span", piece.text);
    if (piece.span) part.title = piece.span;
    view.append(part);
    reached = piece.to;
  }
  return view;
}

function cellView(cell) {
  const view = make("div");
  if (cell === null) {
    view.append(make("p", "This cell has no row for this sample.", "note"));
    return view;
  }
  if (cell.output !== null) view.append(make("div", cell.output || "(nothing)", "output"));
  if (cell.cut) view.append(make("p", "The output goes on; the rows have all of it.", "note"));
  const metrics = Object.entries(cell.metrics).map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? +value.toFixed(4) : value ?? "-"}`);
  const facts = [["score", metrics.join(", ") || "none"]];
  if (cell.error !== null) facts.push(["error", cell.error]);
  if (cell.share !== null) {
    const bytes = cell.kept === null ? "" : `${told(cell.kept, 1)}% of the full cache's bytes, `;
    facts.push(["cache kept", `${bytes}${told(cell.mib, 1)} MiB; ${told(cell.share, 1)}% of the entries in the layers that evict, ${told(cell.entries, 0)} a head`]);
  }
  if (cell.prefill_s !== null) facts.push(["prefill", `${told(cell.prefill_s, 2)} s`]);
  if (cell.decode_s !== null) facts.push(["decoding", `${told(cell.decode_s, 2)} s`]);
  view.append(terms(facts));
  return view;
}

function sides(run, sample, left, right) {
  const look = (place) => {
    const cell = run.samples.cells[place];
    const method = run.scores.methods.find((one) => one.name === cell.method);
    return {cell: sample.cells[place], name: `${cell.method} at ${cell.asked}`, method, mean: run.scores.parts[0].cells.find((one) => one.method === cell.method && one.budget === cell.budget)};
  };
  const found = [{...look(left), dash: "solid", width: 3, symbol: "circle"}];
  if (right !== left) found.push({...look(right), dash: "dash", width: 2, symbol: "diamond"});
  return found;
}

function line(side, name, x, y, more) {
  return {type: "scatter", mode: "lines+markers", name: plain(name), x, y, line: {color: side.method.colour, dash: side.dash, width: side.width}, marker: {symbol: side.symbol, size: 7, color: side.method.colour}, ...more};
}

function drawSurvival(run, sample, left, right) {
  const traces = [];
  for (const side of sides(run, sample, left, right)) {
    for (const [span, layers] of Object.entries(side.cell ? side.cell.spans : {})) {
      traces.push(line(side, `${side.name}: ${span}`, layers.map((_, layer) => layer), layers));
    }
    const mean = side.mean ? side.mean.needle : [];
    if (mean.length && !side.method.reference) {
      traces.push(line(side, `${side.name}: mean of all samples`, mean.map((_, layer) => layer), mean, {mode: "lines", opacity: 0.55, line: {color: side.method.colour, dash: "dot", width: 1.5}}));
    }
  }
  const recorded = run.samples.samples.some((one) => one.cells.some((cell) => cell && Object.keys(cell.spans).length));
  document.getElementById("survival").hidden = traces.length === 0;
  document.getElementById("survival-note").textContent = traces.length ? "" : recorded ? "Neither side has survival to show." : "This run names no passages whose survival could be shown.";
  if (traces.length) {
    const axes = {xaxis: {title: {text: "layer"}, dtick: traces[0].x.length > 12 ? 5 : 1}, yaxis: {title: {text: "marked passage still cached, %"}, range: [-4, 104]}};
    Plotly.react("survival", traces, layout(axes), CONFIG);
  }
}

function drawLikelihood(run, sample, left, right) {
  const known = sides(run, sample, left, right).filter((side) => side.cell && side.cell.nll);
  document.getElementById("likelihood").hidden = known.length === 0;
  if (known.length) {
    const traces = known.map((side) => line(side, side.name, side.cell.nll.position, side.cell.nll.nll));
    const axes = {xaxis: {title: {text: "position in the document, tokens (means of blocks)"}}, yaxis: {title: {text: "NLL, nats per token"}}};
    Plotly.react("likelihood", traces, layout(axes), CONFIG);
  }
}

function drawMap(run, choose) {
  const part = document.getElementById("map-part"), {cells, samples} = run.samples;
  part.hidden = !run.scores.bounded;
  if (part.hidden || !part.open) return;
  const names = cells.map((cell) => `${plain(cell.method)} ${plain(cell.asked)}`), rows = samples.map((sample) => plain(sample.id));
  const values = samples.map((sample) => sample.cells.map((cell) => (cell ? cell.score : null)));
  const trace = {type: "heatmap", x: names.map((_, number) => number), y: rows.map((_, number) => number), z: values, zmin: 0, zmax: 1, colorscale: "Viridis", xgap: 1, ygap: 1, hoverongaps: false, colorbar: {title: {text: "score"}}};
  trace.hovertemplate = "%{customdata}: %{z:.3g}<extra></extra>";
  trace.customdata = rows.map((row) => names.map((name) => `sample ${row}, ${name}`));
  const ticks = (texts) => ({tickvals: texts.map((_, number) => number), ticktext: texts, automargin: true, showgrid: false, zeroline: false, tickfont: {size: 10}});
  const shape = {width: 170 + 26 * names.length, height: 150 + 15 * rows.length, margin: {l: 60, r: 10, t: 10, b: 110}, plot_bgcolor: "#e6e6e6"};
  const axes = {xaxis: {...ticks(names), tickangle: -60}, yaxis: {...ticks(rows), autorange: "reversed"}};
  Plotly.react("map", [trace], {...shape, ...axes}, {...CONFIG, responsive: false});
  const map = document.getElementById("map");
  map.removeAllListeners("plotly_click");
  map.on("plotly_click", (event) => choose(event.points[0].y, event.points[0].x));
}

function passes(run, sample, left, right, which) {
  const [one, other] = [sample.cells[left], sample.cells[right]];
  if (which === "wrong") return one !== null && one.score !== null && one.score < 1;
  if (which === "differ") return (one ? one.score : null) !== (other ? other.score : null);
  if (which === "error") return one !== null && one.error !== null;
  return true;
}
