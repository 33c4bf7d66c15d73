// The chat. What a model says is put into text nodes, never into the page as HTML.

import { ask, events } from "./http.js";

const by = (id) => document.getElementById(id);
const messages = [];
let running = null;

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}

function show(role, text) {
  const article = element("article", `message ${role}`);
  const body = element("div", "text", text);
  article.append(element("h3", "", role === "user" ? "You" : "Model"), body);
  by("log").append(article);
  return { article, body };
}

function near(log) {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

function append(node, text) {
  const log = by("log");
  const follow = near(log);
  node.append(text);
  if (follow) log.scrollTop = log.scrollHeight;
}

function thoughtOf(shown) {
  if (!shown.thought) {
    const details = element("details", "thought");
    shown.thought = element("div", "text");
    details.append(element("summary", "", "Reasoning"), shown.thought);
    shown.body.before(details);
  }
  return shown.thought;
}

function body(model) {
  const system = by("system").value.trim();
  const asked = { model, messages: [...messages], stream: true, stream_options: { include_usage: true } };
  if (system) asked.messages.unshift({ role: "system", content: system });
  for (const [field, name] of [["temperature", "temperature"], ["tokens", "max_completion_tokens"], ["seed", "seed"]]) {
    if (by(field).value !== "") asked[name] = Number(by(field).value);
  }
  return asked;
}

async function answer(model, shown, stopping) {
  const begun = performance.now();
  let first = null;
  let last = begun;
  let text = "";
  let usage = null;
  let ending = null;
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body(model)),
    signal: stopping.signal,
  });
  for await (const [, data] of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    usage = chunk.usage ?? usage;
    const choice = chunk.choices[0];
    if (!choice) continue;
    ending = choice.finish_reason ?? ending;
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta;
    if (content || thought || calls) {
      last = performance.now();
      first ??= last;
    }
    if (thought) append(thoughtOf(shown), thought);
    if (calls) append(shown.body, JSON.stringify(calls));
    if (content) {
      text += content;
      append(shown.body, content);
    }
  }
  messages.push({ role: "assistant", content: text });
  return note(usage, ending, first === null ? null : first - begun, last - (first ?? last));
}

function note(usage, ending, first, rest) {
  const said = [];
  if (usage) {
    said.push(`${usage.completion_tokens} tokens`);
    if (first !== null) said.push(`first after ${(first / 1000).toFixed(2)} s`);
    if (rest > 0) said.push(`${((usage.completion_tokens - 1) / (rest / 1000)).toFixed(1)} tokens/s`);
    const cached = usage.prompt_tokens_details?.cached_tokens;
    if (cached) said.push(`${cached} of ${usage.prompt_tokens} prompt tokens from flash`);
  }
  if (ending === "length") said.push("stopped at the most tokens");
  return said.join(", ");
}

async function send(model) {
  const text = by("prompt").value;
  if (!text.trim() || running || !model) return;
  by("prompt").value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  const shown = show("assistant", "");
  running = new AbortController();
  busy(true);
  try {
    append(shown.article, element("p", "note", await answer(model, shown, running)));
  } catch (error) {
    const stopped = error.name === "AbortError";
    const partial = shown.body.textContent;
    if (partial) messages.push({ role: "assistant", content: partial });
    else messages.pop();
    append(shown.article, element("p", stopped ? "note" : "error", stopped ? "stopped" : error.message));
  } finally {
    running = null;
    busy(false);
    by("prompt").focus();
  }
}

function busy(on) {
  by("send").disabled = on;
  by("stop").disabled = !on;
  by("log").setAttribute("aria-busy", String(on));
}

/** Begin: `model` says which model is chosen. */
export function beginChat(model) {
  by("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send(model());
  });
  by("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send(model());
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  by("stop").addEventListener("click", () => running?.abort());
  by("anew").addEventListener("click", () => {
    running?.abort();
    messages.length = 0;
    by("log").replaceChildren();
    by("prompt").focus();
  });
}
