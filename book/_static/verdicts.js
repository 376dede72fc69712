// The filter of the page of verdicts: radio buttons choose a verdict and a document. Without it all boxes are shown.
document.addEventListener("DOMContentLoaded", () => {
  const boxes = [...document.querySelectorAll(".bd-article .qb-claim")];
  if (!boxes.length) return;
  const verdictOf = (box) => box.querySelector(".qb-verdict")?.textContent.split("·")[1].trim() ?? "not checked";
  const sectionOf = (box) => box.closest("section");
  const group = (name, legend, choices) => {
    const radios = choices.map(
      ([value, words], at) =>
        `<label><input type="radio" name="${name}" value="${value}"${at ? "" : " checked"}> ${words}</label>`
    );
    return `<fieldset><legend>${legend}</legend>${radios.join(" ")}</fieldset>`;
  };
  const sections = [...new Set(boxes.map(sectionOf))];
  const documents = sections.map((section, at) => {
    return [at, section.querySelector("h2").firstChild.textContent.trim()];
  });
  const verdicts = ["does not hold", "changed", "holds if", "holds", "not checked"].filter((verdict) =>
    boxes.some((box) => verdictOf(box) === verdict)
  );
  const form = document.createElement("form");
  form.className = "qb-filter";
  form.innerHTML =
    group("verdict", "Verdict", [["", "all"], ...verdicts.map((verdict) => [verdict, verdict])]) +
    group("document", "Document", [["", "both"], ...documents]) +
    '<p role="status"></p>';
  sections[0].before(form);
  const show = () => {
    const chosen = new FormData(form);
    const verdict = chosen.get("verdict");
    const place = chosen.get("document");
    for (const box of boxes) {
      const here = place === "" || sectionOf(box) === sections[Number(place)];
      (box.closest("[id]:not(section)") ?? box).hidden = box.hidden = !(
        here && (verdict === "" || verdictOf(box) === verdict)
      );
    }
    for (const section of sections) section.hidden = !boxes.some((box) => sectionOf(box) === section && !box.hidden);
    form.querySelector("p").textContent = `${boxes.filter((box) => !box.hidden).length} of ${boxes.length} statements`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.reset(); // what the browser keeps of an earlier visit would hide the box that an address names
  show();
});
