// Sorts and filters the table of the board; without it the table stands as it was written.
"use strict";
(() => {
  const table = document.getElementById("board");
  if (!table) return;
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const filters = [...document.querySelectorAll("select[data-filter]")];
  const words = document.getElementById("words"), count = document.getElementById("count"), order = document.getElementById("order");
  const compare = new Intl.Collator("en", { numeric: true }).compare;

  function valueOf(row, column) { return row.cells[column].dataset.sort; }

  function sort(column, direction) {
    const sorted = [...rows].sort((a, b) => {
      const one = valueOf(a, column), two = valueOf(b, column);
      if (one === "" || two === "") return (one === "") - (two === ""); // what has no value stands last
      const left = Number(one), right = Number(two);
      return direction * (Number.isNaN(left) || Number.isNaN(right) ? compare(one, two) : left - right);
    });
    body.append(...sorted);
    heads.forEach((head, number) => {
      if (number === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    order.value = `${column} ${direction}`;
  }

  function filter() {
    const asked = words.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = filters.every(one => one.value === "" || (one.dataset.filter === "state"
        ? row.dataset.state.split("|").includes(one.value) : row.dataset[one.dataset.filter] === one.value));
      row.hidden = !(fits && (asked === "" || row.textContent.toLowerCase().includes(asked)));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} lines`;
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") === "ascending" ? -1 : 1));
    head.replaceChildren(button);
  });
  filters.forEach(one => one.addEventListener("change", filter));
  words.addEventListener("input", filter);
  order.addEventListener("change", () => {
    if (order.value !== "") sort(...order.value.split(" ").map(Number));
    else {
      body.append(...rows);
      heads.forEach(head => head.removeAttribute("aria-sort"));
    }
  });
  document.getElementById("controls").hidden = false;
  filter();
})();
