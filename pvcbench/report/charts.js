"use strict";
// Charts of a run: curves with intervals and the needle grid. Texts of results reach Plotly with their markup escaped.

const BUTTONS = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]; // none that asks a server
const CONFIG = {responsive: true, displaylogo: false, modeBarButtons: BUTTONS};
const AXES = {
  kept: {label: (run) => run.scores.sizes.kept, unit: "%"},
  entries: {label: (run) => run.scores.sizes.entries, unit: "%"},
  mib: {label: () => "KV cache, MiB", unit: " MiB"},
  prefill_s: {label: () => "prefill and compression, seconds a sample (median)", unit: " s"},
  decode_s: {label: () => "decoding, seconds a sample (median, cells that ran alone)", unit: " s"},
};

function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function told(number, digits) {
  return number === null || number === undefined ? "-" : number.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
}

function narrow() {
  return window.innerWidth < 700;
}

function legend() {
  return narrow() ? {orientation: "h", y: -0.28, x: 0} : {x: 1.02, y: 1};
}

function layout(more) {
  const axis = {showline: true, linecolor: "#444", gridcolor: "#e4e4e4", zeroline: false, automargin: true};
  return {
    font: {family: 'system-ui, "DejaVu Sans", sans-serif', size: 13}, margin: {l: 64, r: 16, t: 34, b: 56}, hovermode: "closest",
    paper_bgcolor: "#fff", plot_bgcolor: "#fff", legend: legend(), ...more, xaxis: {...axis, ...more.xaxis}, yaxis: {...axis, ...more.yaxis},
  };
}

function hover(run, cell) {
  const digits = run.scores.digits;
  const ends = cell.low === null ? "" : ` [${told(cell.low, digits)}, ${told(cell.high, digits)}]`;
  const lines = [`<b>${plain(cell.method)}</b>, asked ${plain(cell.asked)}`, `${plain(run.scores.metric)}: ${told(cell.score, digits)}${ends}`];
  if (cell.difference !== null) lines.push(`${run.scores.difference}: ${told(cell.difference, run.scores.lower ? 3 : digits)}`);
  lines.push(`kept ${told(cell.kept, 1)}% of the bytes, ${told(cell.entries, 1)}% of the entries, ${told(cell.mib, 1)} MiB`);
  lines.push(cell.complete ? `n = ${cell.samples}` : `incomplete: ${cell.samples} of ${cell.of} samples, not ranked`);
  return lines.join("<br>");
}

function points(run, part, axis, name) {
  const cells = run.scores.parts[part].cells.filter((cell) => cell.method === name && cell.score !== null && cell[axis] !== null);
  return cells.sort((a, b) => a[axis] - b[axis] || a.kept - b.kept);
}

function measured(run, axis) {
  return run.scores.parts.some((part) => part.cells.some((cell) => cell.score !== null && cell[axis] !== null));
}

function hollow(symbol) {
  return symbol.endsWith("-open") ? symbol : `${symbol}-open`;
}

function curveTrace(run, method, cells, axis) {
  const bars = (end) => cells.map((cell) => (cell[end] === null ? 0 : Math.abs(cell[end] - cell.score)));
  return {
    type: "scatter", mode: method.reference ? "markers" : "lines+markers", name: plain(method.name), legendgroup: method.name,
    x: cells.map((cell) => cell[axis]), y: cells.map((cell) => cell.score), hovertext: cells.map((cell) => hover(run, cell)), hoverinfo: "text",
    line: {color: method.colour, dash: method.dash, width: 2},
    marker: {color: method.colour, symbol: cells.map((cell) => (cell.complete ? method.symbol : hollow(method.symbol))), size: method.reference ? 14 : 10},
    error_y: {type: "data", symmetric: false, array: bars("high"), arrayminus: bars("low"), color: method.colour, thickness: 1.2, width: 4},
    showlegend: !method.reference,
  };
}

function referenceLine(method, cell, last) {
  return {
    type: "scatter", mode: "lines", name: `${plain(method.name)} cache, ${told(cell.mib, 1)} MiB`, x: [0, last], y: [cell.score, cell.score],
    line: {color: method.colour, dash: method.dash, width: 1.5}, hoverinfo: "skip", legendgroup: method.name,
  };
}

function curves(run, part, axis, chosen) {
  const traces = [], shapes = [], annotations = [], methods = run.scores.methods.filter((method) => chosen.has(method.name));
  const all = methods.flatMap((method) => points(run, part, axis, method.name));
  const share = axis === "kept" || axis === "entries";
  const last = share ? 100 : 1.04 * Math.max(0, ...all.map((cell) => cell[axis]));
  for (const method of methods) {
    const cells = points(run, part, axis, method.name);
    if (cells.length && method.reference) {
      traces.push(referenceLine(method, cells[0], last));
      if (cells[0].low !== null) {
        shapes.push({type: "rect", x0: 0, x1: last, y0: cells[0].low, y1: cells[0].high, fillcolor: method.colour, opacity: 0.07, line: {width: 0}});
      }
    }
    if (cells.length) traces.push(curveTrace(run, method, cells, axis));
    const reach = axis === "kept" ? method.reach : method.reach_entries;
    if (share && reach !== null) {
      shapes.push({type: "line", x0: reach, x1: reach, yref: "paper", y0: 0, y1: 1, line: {color: method.colour, dash: "dot", width: 1.2}});
      annotations.push({x: reach, yref: "paper", y: 0.02, text: `${plain(method.name)}: nothing smaller`, textangle: -90, xanchor: "right", yanchor: "bottom", showarrow: false, font: {color: method.colour, size: 11}});
    }
  }
  const scores = all.flatMap((cell) => [cell.score, cell.low, cell.high]).filter((value) => value !== null && value !== undefined);
  const log = run.scores.lower && Math.max(...scores) > 4 * Math.min(...scores);
  const yaxis = {title: {text: plain(run.scores.metric) + (run.scores.lower ? " (lower is better)" : "")}, type: log ? "log" : "linear"};
  if (run.scores.bounded) yaxis.range = [-4, 104];
  const xaxis = {title: {text: plain(AXES[axis].label(run))}, range: [share ? 0 : -0.02 * last, 1.02 * last]};
  return [traces, layout({xaxis, yaxis, shapes, annotations})];
}

function absent(run, part, chosen) {
  const lost = run.scores.parts[part].cells.filter((cell) => chosen.has(cell.method) && (!cell.complete || cell.score === null));
  return lost.map((cell) => `${cell.method} at ${cell.asked}: ${cell.score === null ? "no score" : `hollow, ${cell.samples} of ${cell.of} samples have a score`}${cell.error ? ` (${cell.error})` : ""}`);
}

function drawCurve(run, part, axis, chosen) {
  Plotly.react("curve", ...curves(run, part, axis, chosen), CONFIG);
  const lost = absent(run, part, chosen);
  document.getElementById("curve-note").textContent = lost.length ? `Not whole: ${lost.join("; ")}.` : "";
}

function drawGrid(run) {
  document.getElementById("grid-part").hidden = run.grid === null;
  if (run.grid !== null) Plotly.react("grid", run.grid.data, run.grid.layout, {...CONFIG, responsive: false});
}
