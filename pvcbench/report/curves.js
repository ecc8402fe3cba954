// Score against cache size or time, and the needle grid.

const AXES = {
  kept: {label: (run) => run.sizes.kept, share: true},
  entries: {label: (run) => run.sizes.entries, share: true},
  mib: {label: () => "KV cache, MiB"},
  prefill_s: {label: () => "prefill and compression, seconds a sample (median)"},
  decode_s: {label: () => "decoding, seconds a sample (median, cells that ran alone)"},
};

function samplesAt(run, cell) {
  return `#samples/${[run.name, cell.method, cell.budget].map(encodeURIComponent).join("/")}`;
}

function tip(run, cell) {
  const digits = run.digits, ends = cell.low === null ? "" : ` [${told(cell.low, digits)}, ${told(cell.high, digits)}]`;
  const lines = [`${cell.method}, asked ${cell.asked}`, `${run.metric}: ${told(cell.score, digits)}${ends}`];
  if (cell.difference !== null) lines.push(`${run.difference}: ${told(cell.difference, run.lower ? 3 : digits)}`);
  lines.push(`kept ${told(cell.kept, 1)}% of the bytes, ${told(cell.entries, 1)}% of the entries, ${told(cell.mib, 1)} MiB`);
  lines.push(cell.complete ? `n = ${cell.samples}` : `incomplete: ${cell.samples} of ${cell.of} samples, not ranked`);
  return lines.join("\n");
}

function pointsOf(run, part, axis, name) {
  const cells = run.parts[part].cells.filter((cell) => cell.method === name && cell.score !== null && cell[axis] !== null);
  return cells.sort((a, b) => a[axis] - b[axis] || a.kept - b.kept);
}

function measured(run, axis) {
  return run.parts.some((part) => part.cells.some((cell) => cell.score !== null && cell[axis] !== null));
}

function drawCurve(run, part, axis, chosen) {
  const methods = run.methods.filter((method) => chosen.has(method.name)), share = AXES[axis].share;
  const all = methods.flatMap((method) => pointsOf(run, part, axis, method.name));
  const cut = all.filter((cell) => !cell.reference || !share).map((cell) => cell[axis]);
  const last = share ? Math.min(100, cut.length ? 1.15 * Math.max(...cut) : 100) : 1.04 * Math.max(1e-9, ...cut);
  const series = [], bands = [], walls = [];
  for (const method of methods) {
    const cells = pointsOf(run, part, axis, method.name);
    if (cells.length && method.reference) {
      series.push({name: `${method.name} cache`, line: true, width: 1.5, colour: method.colour, dash: method.dash, points: [0, last].map((x) => ({x, y: cells[0].score}))});
      if (cells[0].low !== null) bands.push({low: cells[0].low, high: cells[0].high, colour: method.colour});
    }
    const points = cells.filter((cell) => cell[axis] <= last).map((cell) => ({x: cell[axis], y: cell.score, low: cell.low, high: cell.high ?? cell.score, hollow: !cell.complete, tip: tip(run, cell), href: samplesAt(run, cell)}));
    if (points.length) series.push({name: method.name, line: !method.reference, colour: method.colour, dash: method.dash, symbol: method.symbol, points});
    const reach = axis === "kept" ? method.reach : method.reach_entries;
    if (share && reach !== null && reach <= last) walls.push({x: reach, colour: method.colour, text: `${method.name}: nothing smaller`});
  }
  const scores = all.flatMap((cell) => [cell.score, cell.low, cell.high]).filter((value) => value !== null && value !== undefined);
  at("curve").hidden = !scores.length;
  if (scores.length) chart("curve", {x: {label: AXES[axis].label(run), low: 0, high: last}, y: heights(run, scores), series, bands, walls});
  const lost = absent(run, part, chosen);
  at("curve-note").textContent = scores.length ? (lost.length ? `Not whole: ${lost.join("; ")}.` : "") : "No method is chosen that has a score here.";
}

function heights(run, scores) {
  const label = run.metric + (run.lower ? " (lower is better)" : ""), least = Math.min(...scores), most = Math.max(...scores);
  if (run.bounded) return {label, low: -2, high: 102};
  const log = run.lower && most > 4 * least, room = 0.05 * (most - least) || 1;
  return log ? {label, low: least / 1.1, high: most * 1.1, log} : {label, low: least - room, high: most + room};
}

function absent(run, part, chosen) {
  const lost = run.parts[part].cells.filter((cell) => chosen.has(cell.method) && (!cell.complete || cell.score === null));
  return lost.map((cell) => `${cell.method} at ${cell.asked}: ${cell.score === null ? "no score" : `hollow, ${cell.samples} of ${cell.of} samples have a score`}${cell.error ? ` (${cell.error})` : ""}`);
}

function drawGrid(run) {
  const grid = run.grid;
  at("grid-part").hidden = grid === null;
  if (grid === null) return;
  const head = make("thead"), sizes = make("tr"), lengths = make("tr"), wide = grid.lengths.length;
  sizes.append(header("method", "col", {rowSpan: 2}), header("depth, %", "col", {rowSpan: 2}));
  const columns = ["full cache", ...grid.sizes];
  for (const size of columns) sizes.append(header(size, "colgroup", {colSpan: wide}));
  for (const _ of columns) for (const length of grid.lengths) lengths.append(header(`${length} tokens`, "col", {}));
  head.append(sizes, lengths);
  const [full, ...others] = grid.panels;
  at("grid").replaceChildren(make("caption", "Hits of samples by method and depth, at each size and prompt length"), head, ...(others.length ? others : [{name: "full", cells: []}]).map((panel) => gridRows(run, panel.name, [full.cells[0], ...panel.cells], wide)));
}

function header(text, scope, more) {
  return Object.assign(make("th", text), {scope, ...more});
}

function gridRows(run, name, cells, wide) {
  const body = make("tbody"), {depths} = run.grid;
  for (const [down, depth] of depths.entries()) {
    const row = make("tr");
    if (down === 0) row.append(header(name, "rowgroup", {rowSpan: depths.length}));
    row.append(header(depth, "row", {}));
    for (const cell of cells) {
      if (cell.why) {
        if (down === 0) row.append(Object.assign(make("td", cell.why, "why"), {colSpan: wide, rowSpan: depths.length}));
        continue;
      }
      for (const square of cell.squares[down]) {
        const shown = make("td", square ? square[1] : "", "square");
        if (square) paint(shown, run.palette, square[0]);
        row.append(shown);
      }
    }
    body.append(row);
  }
  return body;
}
