// Makes the headings of every sortable table buttons that sort it; without this the tables are complete, but fixed.
const collator = new Intl.Collator("en", { numeric: true });

function sort(table, header) {
  const column = header.cellIndex, numeric = header.dataset.kind === "number";
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const value = row => row.cells[column].dataset.value;
  const compare = (one, other) => (numeric ? Number(one) - Number(other) : collator.compare(one, other));
  const rows = [...table.tBodies[0].rows];
  const known = rows.filter(row => value(row) !== undefined);
  const missing = rows.filter(row => value(row) === undefined);
  known.sort((one, other) => sign * compare(value(one), value(other)));
  table.tBodies[0].append(...known, ...missing);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header));
    header.append(button);
  }
}
