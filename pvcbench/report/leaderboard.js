// The leaderboard: sorted by any column within each setting, filtered by task, model, protocol, size and method.

const order = {column: null, down: false};

function boardBodies() {
  return [...at("board").tBodies];
}

function boardRows(body) {
  return [...body.rows].filter((row) => row.dataset.keys);
}

function sortBoard(column) {
  const first = column === "score" || column === "difference"; // the largest first: best, unless lower is better
  order.down = order.column === column ? !order.down : first;
  order.column = column;
  for (const body of boardBodies()) {
    const rows = boardRows(body).map((row) => [JSON.parse(row.dataset.keys)[column], row]);
    rows.sort(([a], [b]) => compareKeys(a, b));
    body.append(...rows.map(([, row]) => row));
  }
  for (const button of at("board").querySelectorAll("thead button")) {
    const own = button.dataset.sort === column;
    button.parentElement.setAttribute("aria-sort", own ? (order.down ? "descending" : "ascending") : "none");
  }
}

function compareKeys(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  const found = typeof a === "string" ? a.localeCompare(b) : a - b;
  return order.down ? -found : found;
}

function filterBoard() {
  const asked = Object.fromEntries([...document.querySelectorAll("[data-filter]")].map((select) => [select.dataset.filter, select.value]));
  let shown = 0, all = 0;
  for (const body of boardBodies()) {
    const fits = ["task", "model", "protocol"].every((name) => asked[name] === "" || body.dataset[name] === asked[name]);
    const rows = boardRows(body), reference = (row) => row.classList.contains("reference");
    const chosen = rows.filter((row) => !reference(row) && ["size", "method"].every((name) => asked[name] === "" || row.dataset[name] === asked[name]));
    body.hidden = !fits || (!chosen.length && !rows.every(reference)); // the full cache stands beside what is chosen, never alone
    for (const row of rows) row.hidden = !(reference(row) || chosen.includes(row));
    all += rows.length;
    shown += body.hidden ? 0 : rows.filter((row) => !row.hidden).length;
  }
  at("board-count").textContent = `${shown} of ${all} cells shown`;
}

function startBoard() {
  const values = {task: new Set(), model: new Set(), protocol: new Set(), size: new Set(), method: new Set()};
  for (const body of boardBodies()) {
    for (const name of ["task", "model", "protocol"]) values[name].add(body.dataset[name]);
    for (const row of boardRows(body)) {
      if (row.classList.contains("reference")) continue;
      values.size.add(row.dataset.size);
      values.method.add(row.dataset.method);
    }
  }
  for (const [name, found] of Object.entries(values)) {
    const select = at(`board-${name}`), numbers = {numeric: true};
    for (const value of [...found].sort((a, b) => a.localeCompare(b, "en", numbers))) select.append(new Option(value, value));
    select.addEventListener("change", filterBoard);
  }
  for (const button of at("board").querySelectorAll("thead button")) button.addEventListener("click", () => sortBoard(button.dataset.sort));
  filterBoard();
}
