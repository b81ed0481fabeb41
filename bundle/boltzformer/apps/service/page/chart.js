// What each slice holds, above the slider: marked area as filled shapes, existence probability as lines.

const WIDTH = 1000;
const HEIGHT = 64;

export function drawChart(svg, findings, hidden) {
  svg.replaceChildren();
  if (!findings.length) return;
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const shown = findings.filter((_, index) => !hidden.has(index));
  const largest = Math.max(1e-9, ...shown.flatMap((finding) => finding.square_millimetres));
  add(svg, "path", { d: `M0 ${HEIGHT}H${WIDTH}`, stroke: "#2d3946" });
  for (const finding of shown) {
    const shares = finding.square_millimetres.map((area) => area / largest);
    add(svg, "path", { d: steps(shares), fill: finding.color, "fill-opacity": 0.35 });
    if (!finding.existence) continue;
    const line = { fill: "none", stroke: finding.color, "stroke-width": 2, "vector-effect": "non-scaling-stroke" };
    add(svg, "path", { d: polyline(finding.existence), class: "existence", ...line });
  }
  add(svg, "path", { class: "here", stroke: "#e4ebf1", "stroke-width": 1, "vector-effect": "non-scaling-stroke" });
}

export function markSlice(svg, slice, slices) {
  const x = ((slice + 0.5) / slices) * WIDTH;
  svg.querySelector(".here")?.setAttribute("d", `M${x} 0V${HEIGHT}`);
}

export function legend(findings) {
  if (!findings.length) return "";
  const area = "Filled: marked area of each slice";
  return findings[0].existence ? `${area}. Line: probability (0 to 1) that the object is in the slice.` : `${area}.`;
}

function steps(shares) {
  const width = WIDTH / shares.length;
  const parts = shares.map((share, k) => `L${k * width} ${y(share)}H${(k + 1) * width}`);
  return `M0 ${HEIGHT}${parts.join("")}V${HEIGHT}Z`;
}

function polyline(shares) {
  return "M" + shares.map((share, k) => `${((k + 0.5) / shares.length) * WIDTH} ${y(share)}`).join("L");
}

function y(share) {
  return HEIGHT - share * (HEIGHT - 3);
}

function add(svg, kind, attributes) {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
  svg.append(shape);
}
