// Sliders hold their first frame; the others are read from a file when the slider comes near (tools/site_frames.py).
function qbFrames(name, frames) {
  document.querySelectorAll(`#${name} [data-frame]`).forEach((place, i) => {
    if (i > 0) place.innerHTML = frames[i - 1];
  });
}
document.addEventListener("DOMContentLoaded", () => {
  const near = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        const script = document.createElement("script");
        script.src = target.dataset.frames;
        document.head.append(script);
      }
    },
    { rootMargin: "1000px" },
  );
  for (const slider of document.querySelectorAll(".qb-slider[data-frames]")) near.observe(slider);
});
