"use strict";
{
  const samples = JSON.parse(document.getElementById("slices").textContent);

  for (const figure of document.querySelectorAll(".plane")) {
    const [sample, number] = figure.dataset.place.split(".");
    const plane = samples[sample][number];
    const slider = figure.querySelector("input");
    const cut = figure.querySelector(".cut");
    // All planes of a sample on one scale.
    figure.querySelector(".stack").style.width = `${figure.dataset.share}%`;
    const outline = figure.querySelector(".outline");
    const toggle = figure.closest(".sample").querySelector(".toggle");

    const show = () => {
      const at = Number(slider.value);
      const words = `${plane.places[at] + 1} of ${plane.count}`;
      cut.src = `data:image/jpeg;base64,${plane.pictures[at]}`;
      figure.querySelector("output").textContent = words;
      slider.setAttribute("aria-valuetext", words);
      const drawn = plane.outlines[at];
      outline.hidden = !drawn || !toggle.checked;
      if (drawn) outline.src = `data:image/png;base64,${drawn}`;
    };

    slider.addEventListener("input", show);
    if (toggle) toggle.addEventListener("change", show);
    show();
  }
  document.getElementById("unscripted").remove();
}
