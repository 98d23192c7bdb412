"use strict";
// A box that leaves the rows, figures, lines and dots of the groups whose names hold a text.
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
  for (const mark of document.querySelectorAll("[data-group]")) mark.classList.toggle("off", !shown.has(mark.dataset.group));
  count.textContent = `${shown.size} of ${rows.length} shown`;
};
box.addEventListener("input", filter);
filter();
