// The plot of qhelpers.book.compare_plot: point to a row, tap it or reach it by keyboard, and the line below reads it.
(function (root) {
  var marks = Array.from(root.querySelectorAll(".qb-mark"));
  var detail = root.querySelector("output");
  root.querySelector(".qb-hint").hidden = false;

  // Tab stops once at the plot; the arrow keys go on from there.
  function show(chosen) {
    marks.forEach(function (mark, i) {
      mark.classList.toggle("qb-on", mark === chosen);
      mark.setAttribute("tabindex", mark === chosen || (!chosen && i === 0) ? "0" : "-1");
    });
    detail.textContent = chosen ? chosen.dataset.row : "";
  }

  function showRow(event) {
    var mark = event.target.closest(".qb-mark");
    if (mark) show(mark);
  }
  ["focusin", "pointerover", "click"].forEach(function (kind) { root.addEventListener(kind, showRow); });

  root.addEventListener("keydown", function (event) {
    var here = marks.indexOf(event.target.closest(".qb-mark")), last = marks.length - 1;
    var goes = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: last };
    if (event.key === "Escape") show(null);
    if (here < 0 || !(event.key in goes)) return;
    event.preventDefault(); // the page must not scroll instead
    marks[Math.min(Math.max(goes[event.key], 0), last)].focus();
  });
  show(null);
})
