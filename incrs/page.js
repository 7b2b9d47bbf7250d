"use strict";
// Draws the charts of report.html from the numbers in its `data` element.
const D = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const by = (id) => document.getElementById(id);
const minus = (text) => text.replace("-", "\u2212");
const rounded = (v, places) => minus((Math.abs(v) < 0.5 / 10 ** places ? 0 : v).toFixed(places));
const fixed = (v) => (v == null ? "\u2013" : rounded(v, 4));
const signed = (v) => (v == null ? "\u2013" : (v > 0.000005 ? "+" : "") + rounded(v, 5));
// Plotly reads its labels as a little HTML, so names must not look like any.
const plain = (name) => String(name).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);

function make(tag, text, ...children) {
  const node = document.createElement(tag);
  if (text != null) node.textContent = text;
  node.append(...children);
  return node;
}

// ---- one colour, dash and mark for each updater, in every chart
const DASHES = ["solid", "dash", "dot"];
const STROKES = ["none", "6 3", "2 2.5"];
const MARKS = ["circle", "square", "diamond", "triangle-up", "cross"];
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function style(place) {
  const turn = Math.max(0, Math.floor(place / 8));
  const name = place < 0 ? "--base" : `--c${place % 8}`;
  return { name, dash: DASHES[turn % 3], stroke: STROKES[turn % 3], mark: MARKS[turn % 5] };
}
const styleOf = (label) => style(D.colours.indexOf(label));

function faint(colour, share) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${share})`;
}

function swatch(look) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS(svg.namespaceURI, "line");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 20 9");
  svg.setAttribute("aria-hidden", "true");
  const drawn = { x1: 0, x2: 20, y1: 4.5, y2: 4.5, "stroke-width": 3, "stroke-dasharray": look.stroke };
  for (const [key, value] of Object.entries(drawn)) line.setAttribute(key, value);
  line.style.stroke = `var(${look.name})`;
  svg.append(line);
  return svg;
}

// ---- what all charts share
const coarse = matchMedia("(pointer: coarse)").matches;
let printing = false;
const SETTINGS = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "resetScale2d"]],
  displayModeBar: coarse ? false : "hover",
};

function axis(title, more) {
  const grid = css("--rule");
  return {
    title: { text: plain(title), standoff: 10, font: { size: 13 } }, gridcolor: grid, linecolor: grid, zeroline: false, ticks: "",
    automargin: true, fixedrange: coarse, ...more,
  };
}

function digits(traces) {
  const all = traces.flatMap((t) => t.y || []).filter((v) => v != null);
  const reach = Math.max(...all) - Math.min(...all);
  return reach > 0 ? Math.min(6, Math.max(2, Math.ceil(-Math.log10(reach / 3)))) : 4;
}

function draw(node, traces, xaxis, yaxis, more) {
  const layout = {
    xaxis, yaxis: { tickformat: `.${digits(traces)}f`, nticks: 7, ...yaxis }, margin: { l: 52, r: 16, t: 14, b: 44 }, showlegend: false, hovermode: "closest",
    hoverdistance: 60, modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--ink") },
    dragmode: coarse ? false : "zoom", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--soft") },
    ...(printing ? { width: 660 } : {}), ...more,
  };
  Plotly.react(node, traces, layout, SETTINGS);
  if (node.dataset.told) return;
  node.dataset.told = "yes";
  node.on("plotly_hover", (event) => tell(node, event));
  node.on("plotly_unhover", () => { by("tip").hidden = true; });
}

function tell(node, event) {
  const tip = by("tip");
  tip.replaceChildren(...node.words(event.points));
  tip.hidden = false;
  const { clientX: x, clientY: y } = event.event;
  const { width, height } = tip.getBoundingClientRect();
  if (innerWidth < 640) {
    tip.style.left = "8px";
    tip.style.top = `${Math.min(node.getBoundingClientRect().bottom, innerHeight - height - 8)}px`;
    return;
  }
  tip.style.left = `${Math.max(8, x + 18 + width > innerWidth ? x - 18 - width : x + 18)}px`;
  tip.style.top = `${Math.max(8, Math.min(y - height / 2, innerHeight - height - 8))}px`;
}

function listing(head, lines) {
  const rows = lines.map(([look, name, ...cells]) =>
    make("tr", null, make("td", null, ...(look ? [swatch(look)] : []), name), ...cells.map((c) => make("td", c))));
  return [make("p", head), make("table", null, make("tbody", null, ...rows))];
}

// ---- period by period
const shown = { group: 0, scenario: 0, gaps: false, labels: new Set() };

function firstLabels(group) {
  const few = group.points.map((p) => p.label).filter((label) => label !== D.baseline);
  return new Set([D.baseline, ...group.first, ...(few.length > 8 ? few.slice(0, 6) : few)]);
}

function ticksOf(given, width) {
  const dated = given.every((name) => /^\d{4}-\d\d-\d\d$/.test(name) && name.slice(0, 4) === given[0].slice(0, 4));
  const names = dated ? given.map((name) => name.slice(5)) : given;
  const wide = Math.max(...names.map((name) => name.length)) * 7 + 22;
  const every = Math.max(1, Math.ceil((names.length * wide) / Math.max(width, 120)));
  const at = names.map((_, i) => i).filter((i) => i % every === 0);
  return { tickvals: at, ticktext: at.map((i) => plain(names[i])) };
}

function drawCurves() {
  const node = by("curves-chart");
  const group = D.groups[shown.group];
  const x = group.periods.map((_, i) => i);
  const known = group.curves.filter((c) => c.scenario === shown.scenario && shown.labels.has(c.label));
  const [value, low, high] = shown.gaps ? ["gap", "gapLow", "gapHigh"] : ["mean", "low", "high"];
  const traces = [];
  for (const curve of known.filter((c) => c[value])) {
    const look = styleOf(curve.label);
    const colour = css(look.name);
    const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
    traces.push({ ...edge, y: curve[high] });
    traces.push({ ...edge, y: curve[low], fill: "tonexty", fillcolor: faint(colour, known.length > 5 ? 0.07 : 0.14) });
    traces.push({
      x, y: curve[value], meta: curve, mode: x.length > 40 ? "lines" : "lines+markers", hoverinfo: "none",
      line: { color: colour, width: curve.label === D.baseline ? 3.4 : 2, dash: look.dash },
      marker: { size: 6, symbol: look.mark },
    });
  }
  node.words = (points) => listing(group.periods[points[0].x].name + (group.periods[points[0].x].role === "tune" ? ", tune period" : ""),
    points.filter((p) => p.data.meta).sort((a, b) => (D.up ? b.y - a.y : a.y - b.y)).slice(0, 14).map((p) => {
      const curve = p.data.meta;
      const [l, h] = [curve[low][p.x], curve[high][p.x]];
      const form = shown.gaps ? signed : fixed;
      return [styleOf(curve.label), curve.label, form(p.y), l == null || l === h ? "" : `${form(l)} to ${form(h)}`];
    }));
  const rim = Math.min(0.5, 0.02 * x.length + 0.1);
  const tuned = group.periods.filter((p) => p.role === "tune").length;
  const shapes = tuned && tuned < x.length ? [{
    type: "rect", layer: "below", xref: "x", yref: "paper", x0: -rim, x1: tuned - 0.5, y0: 0, y1: 1,
    fillcolor: css("--wash"), line: { width: 0 },
  }] : [];
  const annotations = shapes.map(() => ({
    text: "tune", x: 0.004, xref: "paper", y: 1, yref: "paper", xanchor: "left", yanchor: "top", showarrow: false, font: { size: 12 },
  }));
  if (shown.gaps) shapes.push({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: css("--base"), width: 1.4 },
  });
  const spike = { showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: css("--soft"), spikesnap: "hovered data" };
  const ticks = ticksOf(group.periods.map((p) => p.name), node.clientWidth - 80);
  draw(node, traces, axis("", { ...ticks, ...spike, showgrid: false, range: [-rim, x.length - 1 + rim] }),
    axis(shown.gaps ? `${D.metric} minus ${D.baseline}` : D.metric, {}), { hovermode: "x", hoverdistance: -1, spikedistance: -1, shapes, annotations });
}

function drawLegend() {
  const group = D.groups[shown.group];
  const labels = [...new Set([D.baseline, ...group.first, ...group.points.map((p) => p.label)])];
  const chips = labels.filter((l) => group.curves.some((c) => c.label === l)).map((label) => {
    const chip = make("button", null, swatch(styleOf(label)), label);
    chip.type = "button";
    chip.setAttribute("aria-pressed", shown.labels.has(label));
    chip.onclick = () => {
      if (!shown.labels.delete(label)) shown.labels.add(label);
      chip.setAttribute("aria-pressed", shown.labels.has(label));
      drawCurves();
      drawCost();
    };
    return chip;
  });
  by("legend").replaceChildren(...chips);
}

// ---- cost against quality
function costTicks(low, high) {
  const ticks = [];
  for (let e = Math.floor(low); e <= Math.ceil(high); e += 1)
    for (const step of high - low > 2 ? [1] : high - low > 0.8 ? [1, 3] : [1, 2, 3, 5, 7]) {
      const at = e + Math.log10(step);
      if (at >= low && at <= high) ticks.push([at, String(Number((step * 10 ** e).toPrecision(1)))]);
    }
  return ticks;
}

// Puts each name over or under its point, a line further off where another is in the way; none where all is full.
function namesBeside(points, place, node, low, high) {
  const ends = points.flatMap((p) => [p.value - (p.spread || 0), p.value + (p.spread || 0)]);
  const tall = (node.clientHeight - 90) / (Math.max(...ends) - Math.min(...ends) || 1);
  const across = (node.clientWidth - 80) / (high - low);
  const taken = [];
  const names = [...points].sort((a, b) => a.seconds - b.seconds).map((p) => {
    const half = p.label.length * 3.6 + 4;
    const x = Math.min(Math.max((place(p) - low) * across, half), (high - low) * across - half);
    const tries = [[1, 6], [-1, 6], [1, 24], [-1, 24]].map(([side, off]) => {
      const y = tall * (p.value + side * (p.spread || 0)) + side * (off + 9);
      return { side, off, x, y, half };
    });
    const free = (one) => taken.every((o) => Math.abs(o.x - one.x) > o.half + one.half || Math.abs(o.y - one.y) > 17);
    const best = tries.find(free);
    if (!best) return null;
    taken.push(best);
    return {
      x: low + x / across, y: p.value + best.side * (p.spread || 0), yanchor: best.side > 0 ? "bottom" : "top",
      yshift: best.side * best.off, text: plain(p.label), showarrow: false, font: { color: css("--ink"), size: 13 },
    };
  });
  return names.includes(null) ? [] : names;
}

function drawCost() {
  const points = D.groups[shown.group].points.filter((p) => shown.labels.has(p.label) && p.seconds != null);
  const paid = points.map((p) => p.seconds).filter((s) => s > 0.005).map(Math.log10);
  const [low, high] = paid.length ? [Math.min(...paid), Math.max(...paid)] : [0, 0];
  const free = points.some((p) => p.seconds <= 0.005);
  const zero = low - Math.max(0.35, 0.25 * (high - low));
  const rim = Math.max(0.12, 0.1 * (high - low));
  const ticks = costTicks(low - rim, high + rim);
  if (free) ticks.unshift([zero, "0"]);
  const letters = points.reduce((sum, p) => sum + p.label.length + 2, 0);
  const labelled = letters * 7 < 1.7 * by("cost-chart").clientWidth;
  const place = (p) => (p.seconds > 0.005 ? Math.log10(p.seconds) : zero);
  const node = by("cost-chart");
  const annotations = labelled ? namesBeside(points, place, node, (free ? zero : low) - rim, high + rim) : [];
  const keys = annotations.length ? [] : points.map((p) => make("span", null, swatch(styleOf(p.label)), p.label));
  by("cost-keys").replaceChildren(...keys);
  const traces = points.map((p) => {
    const look = styleOf(p.label);
    const colour = css(look.name);
    return {
      x: [place(p)], y: [p.value], meta: p, hoverinfo: "none", mode: "markers", cliponaxis: false,
      marker: { size: 11, color: colour, symbol: look.mark },
      error_y: { type: "data", array: [p.spread], color: colour, thickness: 1.2, width: 0, visible: p.spread != null },
    };
  });
  node.words = ([{ data: { meta: p } }]) => listing(p.label, [
    [null, D.metric, fixed(p.value)], ...(p.spread == null ? [] : [[null, "over seeds", `\u00b1 ${fixed(p.spread)}`]]),
    [null, "seconds a period", minus(p.seconds.toFixed(2))]]);
  const [at, text] = [ticks.map((t) => t[0]), ticks.map((t) => t[1])];
  draw(node, traces, axis("seconds a period (log scale)", { tickvals: at, ticktext: text, showgrid: false, range: [(free ? zero : low) - rim, high + rim] }),
    axis(D.metric, {}), { margin: { l: 52, r: 24, t: 26, b: 48 }, annotations });
}

// ---- settings that were swept
function drawSweep(node, sweep) {
  const traces = sweep.lines.map((line, i) => {
    const colour = css(style(i).name);
    return {
      x: line.at, y: line.value, meta: line, mode: "lines+markers", hoverinfo: "none",
      line: { color: colour, width: 2, dash: style(i).dash }, marker: { size: 7, symbol: style(i).mark },
      error_y: { type: "data", array: line.spread, color: faint(colour, 0.7), thickness: 1.2, width: 0 },
    };
  });
  node.words = ([{ data: { meta: line }, pointNumber: i }]) => {
    const spread = line.spread[i] == null ? [] : [[null, "over seeds", `\u00b1 ${fixed(line.spread[i])}`]];
    return listing(`${sweep.head} ${line.x[i]}`, [...(line.name ? [[null, line.name, ""]] : []), [null, D.metric, fixed(line.value[i])], ...spread]);
  };
  const shapes = sweep.base == null ? [] : [{
    type: "line", xref: "paper", x0: 0, x1: 1, y0: sweep.base, y1: sweep.base, line: { color: css("--base"), width: 1.4, dash: "dash" },
  }];
  const annotations = shapes.map(() => ({
    text: plain(D.baseline), xref: "paper", x: 1, y: sweep.base, xanchor: "right", yanchor: "bottom", showarrow: false, font: { size: 12 },
  }));
  const at = sweep.ticks.map((t) => t[0]);
  const near = (40 / node.clientWidth) * (Math.max(...at) - Math.min(...at));
  const kept = sweep.ticks.reduce((some, t) => (some.length && t[0] - some.at(-1)[0] < near ? some : [...some, t]), []);
  const rim = 0.06 * (Math.max(...at) - Math.min(...at) || 1);
  draw(node, traces, axis(sweep.head + (sweep.log ? " (log scale)" : ""), {
    tickvals: kept.map((t) => t[0]), ticktext: kept.map((t) => plain(t[1])), showgrid: false, range: [Math.min(...at) - rim, Math.max(...at) + rim],
  }), axis(D.metric, {}), { shapes, annotations });
}

function drawMap(node, map) {
  node.style.height = `${Math.max(310, 24 * map.y.length + 80)}px`;
  const scale = [[0, css("--low")], [1, css("--high")]];
  const traces = [{
    type: "heatmap", z: map.value, hoverinfo: "none", xgap: 2, ygap: 2, showscale: false, colorscale: scale, reversescale: !D.up,
  }];
  const all = map.value.flat().filter((v) => v != null);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const annotations = map.value.flatMap((row, y) => row.map((v, x) => {
    const deep = (high > low ? (v - low) / (high - low) : 0) > 0.5 === D.up;
    return { x, y, text: v == null ? "" : fixed(v), showarrow: false, font: { size: 12, color: css(deep ? "--paper" : "--ink") } };
  }));
  node.words = ([p]) => listing(`${map.across} ${map.x[p.x]}, ${map.down} ${map.y[p.y]}`, [[null, D.metric, fixed(p.z)]]);
  const named = (title, names) => axis(title, { tickvals: names.map((_, i) => i), ticktext: names.map(plain), showgrid: false, fixedrange: true });
  draw(node, traces, named(map.across, map.x), named(map.down, map.y), { annotations: (node.clientWidth - 60) / map.x.length > 42 ? annotations : [] });
}

function drawSettings() {
  document.querySelectorAll("[data-sweep]").forEach((node) => drawSweep(node, D.sweeps[node.dataset.sweep]));
  document.querySelectorAll("[data-map]").forEach((node) => drawMap(node, D.maps[node.dataset.map]));
  document.querySelectorAll("[data-place]").forEach((node) => {
    if (!node.firstElementChild) node.prepend(swatch(style(Number(node.dataset.place))));
  });
}

// Fades the edge of a box that holds more to its right.
function fade() {
  for (const box of document.querySelectorAll(".box"))
    box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 4);
}

function drawAll() {
  if (D.groups.length) { drawCurves(); drawCost(); }
  drawSettings();
}

// ---- what can be pressed
function sortBy(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const place = [...head.parentNode.children].indexOf(head);
  const turned = head.getAttribute("aria-sort");
  const first = head.dataset.first || "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = turned === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => row.children[place].dataset.value ?? row.children[place].textContent;
  const compare = (a, b) => {
    const [p, q] = [key(a), key(b)];
    if (p === "" || q === "") return (p === "") - (q === "");
    const gap = Number(p) - Number(q);
    return sign * (Number.isNaN(gap) ? p.localeCompare(q, undefined, { numeric: true }) : gap);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
  table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
}

function options(select, names, chosen, change) {
  select.replaceChildren(...names.map((name, i) => new Option(name, i, false, i === chosen)));
  select.closest("label").hidden = names.length < 2;
  select.onchange = () => change(Number(select.value));
}

function chooseGroup(place) {
  shown.group = place;
  shown.scenario = 0;
  shown.labels = firstLabels(D.groups[place]);
  options(by("scenario"), D.groups[place].scenarios, 0, (i) => { shown.scenario = i; drawCurves(); });
  const gaps = D.groups[place].curves.some((c) => c.gap);
  by("as-gap").closest(".pair").hidden = !gaps;
  shown.gaps = shown.gaps && gaps;
  drawLegend();
  drawCurves();
  drawCost();
}

function setTheme(theme) {
  root.dataset.theme = theme;
  by("theme").textContent = theme === "dark" ? "Light" : "Dark";
  by("theme").setAttribute("aria-label", theme === "dark" ? "Switch to the light theme" : "Switch to the dark theme");
}

document.querySelectorAll("th button").forEach((button) => { button.onclick = () => sortBy(button); });
document.querySelectorAll("tr[data-label]").forEach((row) => { row.cells[0].prepend(swatch(styleOf(row.dataset.label))); });
by("theme").onclick = () => {
  setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  try { localStorage.setItem("incrs-theme", root.dataset.theme); } catch (e) { /* a file may have no storage */ }
  drawAll();
};
setTheme(root.dataset.theme);
if (D.groups.length) {
  for (const [id, gaps] of [["as-level", false], ["as-gap", true]])
    by(id).onclick = () => {
      shown.gaps = gaps;
      by("as-level").setAttribute("aria-pressed", !gaps);
      by("as-gap").setAttribute("aria-pressed", gaps);
      drawCurves();
    };
  options(by("group"), D.groups.map((g) => g.name), 0, chooseGroup);
  chooseGroup(0);
}
drawSettings();
fade();
addEventListener("resize", fade);
document.querySelectorAll(".box").forEach((box) => { box.onscroll = fade; });
document.querySelectorAll("details").forEach((one) => { one.ontoggle = fade; });
addEventListener("scroll", () => { by("tip").hidden = true; }, { passive: true });
addEventListener("beforeprint", () => {
  root.dataset.screen = root.dataset.theme;
  printing = true;
  setTheme("light");
  drawAll();
});
addEventListener("afterprint", () => { printing = false; setTheme(root.dataset.screen); drawAll(); });
