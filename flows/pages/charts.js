"use strict";
// Draws a live chart in place of each still picture that comes into view. Where that fails, or
// where no script runs, the picture stays.
const OPTIONS = {
  actions: false,
  renderer: "svg",
  ast: true, // expressions are interpreted: the page's policy lets nothing be evaluated
  defaultStyle: false,
  tooltip: { disableDefaultStyle: true },
};

async function drawChart(figure) {
  const place = document.createElement("div");
  place.className = "live";
  figure.append(place);
  const spec = JSON.parse(figure.querySelector("script").textContent);
  try {
    await vegaEmbed(place, { ...spec, width: "container" }, OPTIONS);
    figure.querySelector("img").hidden = true;
  } catch (error) {
    place.remove();
    console.error(error);
  }
}

const comingCharts = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      comingCharts.unobserve(entry.target);
      drawChart(entry.target);
    }
  },
  { rootMargin: "300px" },
);
document.querySelectorAll("figure.chart").forEach((figure) => comingCharts.observe(figure));
