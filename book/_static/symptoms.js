// The filter of the index of symptoms: rows that have all the words, in groups that open while there are any.
document.addEventListener("DOMContentLoaded", () => {
  const rows = [...document.querySelectorAll(".qb-symptoms tbody tr")];
  if (!rows.length) return;
  const form = document.createElement("form");
  form.className = "qb-filter";
  form.innerHTML =
    '<label for="qb-filter">Show rows with these words</label>' +
    '<input id="qb-filter" type="search" autocomplete="off"><p role="status"></p>';
  document.querySelector(".bd-article h2").parentElement.before(form);
  const show = () => {
    const words = form.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    for (const group of document.querySelectorAll(".bd-article :is(section section, details):has(.qb-symptoms)")) {
      group.hidden = !group.querySelector("tbody tr:not([hidden])");
      group.open = words.length > 0;
    }
    const count = rows.filter((row) => !row.hidden).length;
    form.querySelector("p").textContent = words.length ? `${count} of ${rows.length} rows` : `${rows.length} rows`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
});
