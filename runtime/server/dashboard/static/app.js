// The page: colours, the choice of a model, and the stream of what the models do.

import { beginChat } from "./chat.js";
import { ask, events } from "./http.js";
import { forgetPanels, showPanels, showSettings } from "./panels.js";

const by = (id) => document.getElementById(id);
const AGAIN = 2000;

function beginColours() {
  const choice = by("theme");
  const apply = () => {
    if (choice.value) document.documentElement.dataset.theme = choice.value;
    else delete document.documentElement.dataset.theme;
  };
  choice.value = localStorage.getItem("penstock-theme") ?? "";
  apply();
  choice.addEventListener("change", () => {
    localStorage.setItem("penstock-theme", choice.value);
    apply();
  });
}

function say(text, lost = false) {
  const link = by("link");
  if (link.textContent === text) return;
  link.textContent = text;
  link.classList.toggle("lost", lost);
}

function offer(names) {
  const choice = by("model");
  if (names.join("\n") === [...choice.options].map((option) => option.value).join("\n")) return;
  const before = choice.value;
  choice.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(before)) choice.value = before;
}

function show(models) {
  offer(models.map((model) => model.name));
  const chosen = models.find((model) => model.name === by("model").value);
  if (chosen) showPanels(chosen);
}

async function follow() {
  for (;;) {
    try {
      const response = await ask("dashboard/events");
      for await (const [name, data] of events(response)) {
        const said = JSON.parse(data);
        if (said.error) throw new Error(said.error.message);
        if (name === "settings") showSettings(said.settings);
        if (name === "state") {
          say("connected");
          show(said.models);
        }
      }
      say("the server has ended the connection", true);
    } catch (error) {
      say(`not connected: ${error.message}`, true);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}

beginColours();
beginChat(() => by("model").value);
by("model").addEventListener("change", forgetPanels);
follow();
