"use strict";
// Sorting by the buttons in the head of a table, and a box that leaves the rows, lines and dots whose names hold a text.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const number = head.classList.contains("number");
      const first = number && head.dataset.better === "1" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => {
        const cell = row.cells[column];
        if (!number) return cell.textContent;
        return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!number) return sign * x.localeCompare(y, undefined, { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // what is missing comes last
        return sign * (x - y);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
const box = document.getElementById("filter");
const count = document.getElementById("count");
const filter = () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = new Set();
  const rows = [...document.querySelectorAll("#headline-table tbody tr")];
  for (const row of rows) {
    const text = row.dataset.name.toLowerCase();
    if (words.every((word) => text.includes(word))) shown.add(row.dataset.group);
  }
  for (const one of document.querySelectorAll("[data-group]")) one.classList.toggle("off", !shown.has(one.dataset.group));
  count.textContent = `${shown.size} of ${rows.length} shown`;
};
box.addEventListener("input", filter);
filter();
