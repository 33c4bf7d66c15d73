// The heat of experts, layer by layer: a picture, and a table that says the same.

const by = (id) => document.getElementById(id);
const HIGH = 10;
const WIDE = 8;

export function showExperts(layers) {
  by("experts").hidden = !layers.length;
  if (!layers.length) return;
  const all = layers.reduce((sum, layer) => sum + layer.here.length, 0);
  const here = layers.reduce((sum, layer) => sum + count(layer.here), 0);
  by("experts-sum").textContent = `${here} of ${all} experts of ${layers.length} layers are in memory.`;
  draw(layers);
  by("layers").replaceChildren(...layers.map(row));
}

function count(here) {
  return [...here].filter((each) => each === "1").length;
}

function draw(layers) {
  const canvas = by("heat");
  const most = Math.max(...layers.map((layer) => layer.heat.length));
  canvas.width = most * WIDE;
  canvas.height = layers.length * HIGH;
  const paint = canvas.getContext("2d");
  paint.fillStyle = getComputedStyle(canvas).color;
  layers.forEach((layer, down) => {
    [...layer.heat].forEach((heat, across) => {
      paint.globalAlpha = 0.08 + (0.92 * Number(heat)) / 9;
      paint.fillRect(across * WIDE, down * HIGH, WIDE - 1, HIGH - 3);
      if (layer.here[across] === "1") {
        paint.globalAlpha = 1;
        paint.fillRect(across * WIDE, down * HIGH + HIGH - 2, WIDE - 1, 1);
      }
    });
  });
}

function row(layer) {
  const hottest = [...layer.heat]
    .map((heat, number) => [Number(heat), number])
    .filter(([heat]) => heat)
    .sort(([one], [other]) => other - one)
    .slice(0, 5)
    .map(([, number]) => number);
  const made = document.createElement("tr");
  for (const text of [layer.module, `${count(layer.here)} of ${layer.here.length}`, hottest.join(", ") || "–"]) {
    const cell = document.createElement("td");
    cell.textContent = text;
    made.append(cell);
  }
  return made;
}
