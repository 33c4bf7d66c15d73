// What the chosen model does now.

import { Figure, age, rate, size } from "./figures.js";
import { showExperts } from "./experts.js";

const by = (id) => document.getElementById(id);
const LIMITS = { idle: "Idle.", drive: "The drive limits.", memory: "Memory limits.", compute: "Computing limits.", away: "Not in memory." };
const BYTES = 1 << 20; // no other setting is as large
const PARTS = {
  pinned: "pinned",
  kept: "layers that stay",
  stream: "layers that stream",
  experts: "experts",
  residuals: "residuals of experts",
};
const meters = new Map();
let figures = null;

/** Forget what was shown: another model is chosen. */
export function forgetPanels() {
  by("figures").replaceChildren();
  by("tiers").replaceChildren();
  by("journal").replaceChildren();
  meters.clear();
  figures = null;
}

export function showPanels(model) {
  figures ??= {
    tokens: new Figure(by("figures"), "Tokens/s"),
    flash: new Figure(by("figures"), "Flash"),
    hits: new Figure(by("figures"), "Found in memory"),
    queue: new Figure(by("figures"), "Running, waiting", { line: false }),
  };
  by("limit-what").textContent = LIMITS[model.limit.what];
  by("limit-why").textContent = model.limit.why;
  figures.tokens.show(rate(model.tokens_per_second), model.tokens_per_second);
  figures.flash.show(`${size(model.flash_bytes_per_second)}/s`, model.flash_bytes_per_second);
  figures.hits.show(model.hit_ratio === null ? "–" : `${Math.floor(model.hit_ratio * 100)} %`, model.hit_ratio);
  const { running, waiting, paused } = model.requests;
  figures.queue.show(`${running}, ${waiting}${paused ? `, ${paused} paused` : ""}`);
  for (const part of model.memory) showMeter(part);
  by("journal").replaceChildren(...model.journal.map(row));
  showExperts(model.experts);
}

function showMeter({ tier, part, used, limit, most }) {
  const name = `${tier}: ${PARTS[part] ?? part}`;
  let meter = meters.get(name);
  if (!meter) {
    meter = newMeter(name, most !== null);
    meters.set(name, meter);
    by("tiers").append(meter.whole);
  }
  const shrunk = part === "in all" && limit < most ? `, ${size(most)} if others had none` : "";
  const text = limit === null ? size(used) : `${size(used)} of ${size(limit)}${shrunk}`;
  meter.text.textContent = text;
  meter.whole.hidden = !used && limit === 0;
  if (!meter.bar) return;
  const full = part === "in all" ? most : limit;
  meter.bar.setAttribute("aria-valuenow", used);
  meter.bar.setAttribute("aria-valuemax", full);
  meter.bar.setAttribute("aria-valuetext", text);
  meter.bar.firstChild.style.width = `${full ? Math.min(100, (100 * used) / full) : 0}%`;
}

function newMeter(name, bounded) {
  const whole = document.createElement("div");
  whole.className = "meter";
  const line = document.createElement("p");
  const label = document.createElement("span");
  label.textContent = name;
  const text = document.createElement("span");
  line.append(label, text);
  whole.append(line);
  if (!bounded) return { whole, text };
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-label", name);
  bar.setAttribute("aria-valuemin", "0");
  bar.append(document.createElement("div"));
  whole.append(bar);
  return { whole, text, bar };
}

function row(entry) {
  const cells = [
    entry.number,
    entry.state,
    entry.prompt_tokens,
    entry.cached_tokens,
    entry.tokens,
    entry.first_token_s === null ? "–" : `${entry.first_token_s.toFixed(2)} s`,
    entry.tokens_per_second === null ? "–" : rate(entry.tokens_per_second),
    age(entry.age_s),
  ];
  const made = document.createElement("tr");
  for (const text of cells) {
    const cell = document.createElement("td");
    cell.textContent = text;
    made.append(cell);
  }
  return made;
}

export function showSettings(settings) {
  const found = [];
  for (const [section, values] of Object.entries(settings)) {
    const title = document.createElement("h3");
    title.textContent = section;
    const list = document.createElement("dl");
    for (const [key, value] of Object.entries(values)) {
      const term = document.createElement("dt");
      term.textContent = key;
      const said = document.createElement("dd");
      said.textContent = inWords(value);
      list.append(term, said);
    }
    found.push(title, list);
  }
  by("settings-list").replaceChildren(...found);
}

function inWords(value) {
  if (typeof value === "string") return value || "–";
  if (Number.isInteger(value) && value >= BYTES) return size(value);
  return Array.isArray(value) ? value.join(", ") || "–" : JSON.stringify(value);
}
