// The filter of the index of symptoms: rows that have all the words, or else most of them, in groups that open.
document.addEventListener("DOMContentLoaded", () => {
  const rows = [...document.querySelectorAll(".qb-symptoms tbody tr")];
  if (!rows.length) return;
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const form = document.createElement("form");
  form.className = "qb-filter";
  form.innerHTML =
    '<label for="qb-filter">Show rows with these words</label>' +
    '<input id="qb-filter" type="search" autocomplete="off"><p role="status"></p>';
  document.querySelector(".bd-article h2").parentElement.before(form);
  const show = () => {
    const typed = form.querySelector("input").value.toLowerCase().split(/\s+/);
    const words = typed.map((word) => word.replace(/^["'`(]+|["'`),.:;]+$/g, "")).filter(Boolean);
    const found = words.map((word) => rows.filter((row) => texts.get(row).includes(word)));
    // A word counts the more, the fewer rows have it; a traceback's line has words that no row has.
    const scores = new Map(rows.map((row) => [row, 0]));
    found.forEach((some, i) => words[i].length > 2 && some.forEach((row) => scores.set(row, scores.get(row) + 1 / some.length)));
    const all = rows.filter((row) => words.every((word) => texts.get(row).includes(word)));
    const best = Math.max(...scores.values());
    const kept = new Set(all.length || !best ? all : rows.filter((row) => scores.get(row) > 0.6 * best));
    for (const row of rows) row.hidden = !kept.has(row);
    for (const group of document.querySelectorAll(".bd-article :is(section section, details):has(.qb-symptoms)")) {
      group.hidden = !group.querySelector("tbody tr:not([hidden])");
      group.open = words.length > 0;
    }
    const count = rows.filter((row) => !row.hidden).length;
    const told = words.length ? `${count} of ${rows.length} rows` : `${rows.length} rows`;
    form.querySelector("p").textContent = count && !all.length ? `No row has all the words; ${count} come closest` : told;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
});
