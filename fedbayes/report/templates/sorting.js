"use strict";
// Sorting by the buttons in the head of a table: by the values of its cells, or by the numbers they show.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const number = head.classList.contains("number");
      const first = number && head.dataset.better === "1" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => {
        const cell = row.cells[column];
        if (!number) return cell.textContent;
        return Number(cell.dataset.value ?? cell.textContent.replaceAll(",", ""));
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
