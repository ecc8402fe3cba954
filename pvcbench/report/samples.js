// One sample at a time: its prompt, its gold answers, and what two cells of the setting made of it, side by side.

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

function sides(run, cells, sample, left, right) {
  const look = (place) => {
    const cell = cells.cells[place], method = run.methods.find((one) => one.name === cell.method);
    return {cell: sample.cells[place], name: `${cell.method} at ${cell.asked}`, method, mean: run.parts[0].cells.find((one) => one.method === cell.method && one.budget === cell.budget)};
  };
  const found = [{...look(left), dash: "solid", width: 3, symbol: "circle"}];
  if (right !== left) found.push({...look(right), dash: "dash", width: 2, symbol: "diamond"});
  return found;
}

function seriesOf(side, name, x, y, more) {
  const points = x.map((one, number) => ({x: one, y: y[number], tip: `${name}: ${told(y[number], 2)}`}));
  return {name, line: true, colour: side.method.colour, dash: side.dash, width: side.width, symbol: side.symbol, points, ...more};
}

function drawLines(id, axes, series) {
  at(`${id}-part`).hidden = !series.length;
  for (const old of at(`${id}-part`).querySelectorAll("ul")) old.remove();
  if (!series.length) return;
  const x = series.flatMap((one) => one.points.map((point) => point.x));
  chart(id, {x: {label: axes.x, low: Math.min(...x), high: Math.max(...x) || 1}, y: axes.y(series), series});
  legend(at(`${id}-part`), series);
}

function drawSurvival(run, cells, sample, left, right) {
  const series = [];
  for (const side of sides(run, cells, sample, left, right)) {
    for (const [span, layers] of Object.entries(side.cell ? side.cell.spans : {})) {
      series.push(seriesOf(side, `${side.name}: ${span}`, layers.map((_, layer) => layer), layers));
    }
    const mean = side.mean ? side.mean.needle : [];
    if (mean.length && !side.method.reference) {
      series.push(seriesOf(side, `${side.name}: mean of all samples`, mean.map((_, layer) => layer), mean, {symbol: null, opacity: 0.6, dash: "dot", width: 1.5}));
    }
  }
  const recorded = cells.samples.some((one) => one.cells.some((cell) => cell && Object.keys(cell.spans).length));
  at("survival-note").textContent = series.length ? "" : recorded ? "Neither side has survival to show." : "No passages are named whose survival could be shown.";
  drawLines("survival", {x: "layer", y: () => ({label: "marked passage still cached, %", low: -2, high: 102})}, series);
}

function drawLikelihood(run, cells, sample, left, right) {
  const sidesKnown = sides(run, cells, sample, left, right).filter((side) => side.cell && side.cell.nll);
  const series = sidesKnown.map((side) => seriesOf(side, side.name, side.cell.nll.position, side.cell.nll.nll));
  const most = (all) => Math.max(...all.flatMap((one) => one.points.map((point) => point.y)));
  drawLines("likelihood", {x: "position in the document, tokens (means of blocks)", y: (all) => ({label: "NLL, nats per token", low: 0, high: 1.05 * most(all)})}, series);
}

function drawMap(run, cells, choose) {
  const part = at("map-part");
  part.hidden = !run.bounded;
  at("map").replaceChildren();
  if (part.hidden || !part.open) return;
  const head = make("tr");
  head.append(header("sample", "col", {}), ...cells.cells.map((cell) => header(`${cell.method} ${cell.asked}`, "col", {className: "upright"})));
  const body = make("tbody");
  for (const [down, sample] of cells.samples.entries()) {
    const row = make("tr");
    row.append(header(sample.id, "row", {}));
    for (const [across, cell] of sample.cells.entries()) {
      const square = make("td", cell === null || cell.score === null ? "" : told(100 * cell.score, 0), "square small");
      Object.assign(square.dataset, {sample: down, cell: across});
      if (cell !== null && cell.score !== null) paint(square, run.palette, cell.score);
      row.append(square);
    }
    body.append(row);
  }
  const top = make("thead");
  top.append(head);
  at("map").replaceChildren(make("caption", "Score in % of every sample in every cell"), top, body);
  at("map").onclick = (event) => { const {sample, cell} = event.target.dataset; if (sample !== undefined) choose(Number(sample), Number(cell)); };
}

function passes(run, sample, left, right, which) {
  const [one, other] = [sample.cells[left], sample.cells[right]];
  if (which === "wrong") return one !== null && one.score !== null && one.score < 1;
  if (which === "differ") return (one ? one.score : null) !== (other ? other.score : null);
  if (which === "error") return one !== null && one.error !== null;
  return true;
}
