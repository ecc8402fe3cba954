// Charts as SVG: points with intervals and lines on two axes, drawn again when the width changes.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = {solid: "", dash: "8 4", dot: "2 3", dashdot: "8 3 2 3"};
const drawn = new Map(); // what stands in each chart, to be drawn again

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function ink(colour) {
  return colour.toLowerCase() === "#000000" ? "currentColor" : colour; // black would be lost on a dark page
}

function polygon(corners, radius, start, inner) {
  const count = inner ? 2 * corners : corners;
  const places = Array.from({length: count}, (_, number) => {
    const angle = start + 2 * Math.PI * number / count, far = inner && number % 2 ? inner * radius : radius;
    return `${(far * Math.cos(angle)).toFixed(2)} ${(far * Math.sin(angle)).toFixed(2)}`;
  });
  return `M${places.join("L")}Z`;
}

function symbolPath(name, r) {
  const up = -Math.PI / 2, cross = (turn) => [0, 1].map((one) => {
    const angle = turn + one * Math.PI / 2, x = r * Math.cos(angle), y = r * Math.sin(angle);
    return `M${-x} ${-y}L${x} ${y}`;
  }).join("");
  const shapes = {
    circle: `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`, square: polygon(4, 1.2 * r, Math.PI / 4), diamond: polygon(4, 1.2 * r, up),
    "triangle-up": polygon(3, 1.2 * r, up), "triangle-down": polygon(3, 1.2 * r, -up), "triangle-left": polygon(3, 1.2 * r, Math.PI),
    "triangle-right": polygon(3, 1.2 * r, 0), pentagon: polygon(5, 1.1 * r, up), hexagon: polygon(6, 1.1 * r, up), star: polygon(5, 1.5 * r, up, 0.4),
    "diamond-tall": `M0 ${-1.4 * r}L${0.8 * r} 0L0 ${1.4 * r}L${-0.8 * r} 0Z`, x: cross(Math.PI / 4), cross: cross(0), "x-thin-open": cross(Math.PI / 4),
  };
  return shapes[name];
}

function mark(parent, series, x, y, hollow) {
  const strokes = ["x", "cross", "x-thin-open"].includes(series.symbol);
  const fill = strokes ? "none" : hollow ? "var(--paper)" : ink(series.colour);
  return draw(parent, "path", {d: symbolPath(series.symbol, 4.5), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, fill, stroke: ink(series.colour), "stroke-width": strokes ? 2 : 1.2, "stroke-dasharray": hollow && strokes ? "2 2" : null});
}

function swatch(series) {
  const view = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({width: 34, height: 12, viewBox: "0 0 34 12", "aria-hidden": "true"})) view.setAttribute(name, value);
  draw(view, "line", {x1: 1, x2: 33, y1: 6, y2: 6, stroke: ink(series.colour), "stroke-width": 2, "stroke-dasharray": DASHES[series.dash]});
  if (series.symbol) mark(view, series, 17, 6, false);
  return view;
}

function ticksOf(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    return found.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((one) => one >= rough);
  return Array.from({length: Math.floor(high / step) - Math.ceil(low / step) + 1}, (_, number) => +((Math.ceil(low / step) + number) * step).toPrecision(12));
}

function scaleOf(axis, from, to) {
  const turn = axis.log ? Math.log : (value) => value, [low, high] = [turn(axis.low), turn(axis.high)];
  return (value) => from + (to - from) * (turn(value) - low) / (high - low);
}

function frame(view, chart, box) {
  const x = scaleOf(chart.x, box.left, box.right), y = scaleOf(chart.y, box.bottom, box.top);
  for (const value of ticksOf(chart.y.low, chart.y.high, chart.y.log)) {
    draw(view, "line", {x1: box.left, x2: box.right, y1: y(value), y2: y(value), class: "gridline"});
    draw(view, "text", {x: box.left - 6, y: y(value) + 4, "text-anchor": "end"}, value.toLocaleString("en"));
  }
  for (const value of ticksOf(chart.x.low, chart.x.high, false)) {
    draw(view, "line", {x1: x(value), x2: x(value), y1: box.bottom, y2: box.bottom + 4, class: "axis"});
    draw(view, "text", {x: x(value), y: box.bottom + 18, "text-anchor": "middle"}, value.toLocaleString("en"));
  }
  draw(view, "path", {d: `M${box.left} ${box.top}V${box.bottom}H${box.right}`, class: "axis", fill: "none"});
  draw(view, "text", {x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle", class: "x-title"}, chart.x.label);
  draw(view, "text", {x: -(box.top + box.bottom) / 2, y: 14, transform: "rotate(-90)", "text-anchor": "middle", class: "y-title"}, chart.y.label);
  return [x, y];
}

function plotSeries(view, series, x, y) {
  const group = draw(view, "g", {"data-name": series.name}), points = series.points.filter((point) => point.y !== null);
  if (series.line && points.length > 1) {
    draw(group, "path", {d: `M${points.map((point) => `${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`).join("L")}`, fill: "none", stroke: ink(series.colour), "stroke-width": series.width || 2, "stroke-dasharray": DASHES[series.dash], opacity: series.opacity || 1});
  }
  for (const point of points) {
    if (point.low !== undefined && point.low !== null) draw(group, "line", {x1: x(point.x), x2: x(point.x), y1: y(point.low), y2: y(point.high), stroke: ink(series.colour), "stroke-width": 1.2, class: "interval-bar"});
    if (!series.symbol) continue;
    const link = point.href ? draw(group, "a", {href: point.href, tabindex: -1}) : group;
    const shape = mark(link, series, x(point.x), y(point.y), point.hollow);
    shape.dataset.x = point.x;
    shape.dataset.y = point.y;
    if (point.tip) draw(shape, "title", {}, point.tip);
  }
}

function chart(id, what) {
  const host = at(id), width = Math.max(300, host.clientWidth), height = host.clientHeight || 420;
  drawn.set(id, what);
  const view = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true"})) view.setAttribute(name, value);
  const box = {left: 62, right: width - 12, top: 12, bottom: height - 48};
  const [x, y] = frame(view, what, box);
  for (const band of what.bands || []) draw(view, "rect", {x: box.left, width: box.right - box.left, y: y(band.high), height: y(band.low) - y(band.high), fill: ink(band.colour), opacity: 0.08});
  for (const wall of what.walls || []) {
    draw(view, "line", {x1: x(wall.x), x2: x(wall.x), y1: box.top, y2: box.bottom, stroke: ink(wall.colour), "stroke-dasharray": DASHES.dot});
    draw(view, "text", {transform: `translate(${x(wall.x) - 4} ${box.bottom - 6}) rotate(-90)`, class: "wall"}, wall.text);
  }
  for (const series of what.series) plotSeries(view, series, x, y);
  host.replaceChildren(view);
}

let waiting = null;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => drawn.forEach((what, id) => { if (at(id).clientWidth) chart(id, what); }), 100);
});

function legend(host, series) {
  const list = make("ul", undefined, "legend");
  for (const one of series) {
    const entry = make("li");
    entry.append(swatch(one), ` ${one.name}`);
    list.append(entry);
  }
  host.append(list);
}

function colourOf(palette, value) {
  return palette[Math.round(Math.min(1, Math.max(0, value)) * (palette.length - 1))];
}

function paint(cell, palette, value) {
  cell.style.background = colourOf(palette, value);
  cell.style.color = value > 0.62 ? "#000000" : "#ffffff";
}
