// Numbers as people read them, and lines of their last minutes.

const SHOWN = 120;
const SVG = "http://www.w3.org/2000/svg";

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) {
    bytes /= 1024;
    at += 1;
  }
  return `${at && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

export function rate(value) {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

export function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : `${Math.floor(seconds / 3600)} h ago`;
}

/** A figure with a name, its value, and a line of its last values. */
export class Figure {
  constructor(list, name, { line = true } = {}) {
    const group = document.createElement("div");
    const term = document.createElement("dt");
    term.textContent = name;
    this.value = document.createElement("dd");
    this.value.dataset.figure = name;
    group.append(term, this.value);
    if (line) {
      this.line = document.createElementNS(SVG, "polyline");
      for (const [key, value] of [["fill", "none"], ["stroke", "currentColor"], ["stroke-width", "2"]]) {
        this.line.setAttribute(key, value);
      }
      this.line.setAttribute("vector-effect", "non-scaling-stroke");
      const picture = document.createElementNS(SVG, "svg");
      picture.setAttribute("viewBox", `0 0 ${SHOWN - 1} 20`);
      picture.setAttribute("preserveAspectRatio", "none");
      picture.setAttribute("aria-hidden", "true");
      picture.append(this.line);
      group.append(picture);
    }
    this.last = [];
    list.append(group);
  }

  show(text, value) {
    this.value.textContent = text;
    if (!this.line) return;
    this.last.push(value ?? 0);
    if (this.last.length > SHOWN) this.last.shift();
    const most = Math.max(...this.last) || 1;
    const begin = SHOWN - this.last.length;
    const points = this.last.map((each, at) => `${begin + at},${(19 - (18 * each) / most).toFixed(1)}`);
    this.line.setAttribute("points", points.join(" "));
  }
}
