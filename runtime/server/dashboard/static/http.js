// Requests with the key, which is kept until the tab is closed and never becomes a part of an address.

const KEPT = "penstock-key";

export class Refused extends Error {}

function headers(more) {
  const key = sessionStorage.getItem(KEPT);
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the server answers ${response.status}`;
}

/** Ask for the key, until the server takes it. One question at a time serves all who wait. */
let asking = null;
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const text = document.getElementById("key-text");
    document.getElementById("key-wrong").hidden = !sessionStorage.getItem(KEPT);
    text.value = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEPT, text.value);
      text.value = "";
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

/** The response to a request that the server accepts. Throws Refused, with what the server says. */
export async function ask(path, options = {}) {
  for (;;) {
    const response = await fetch(path, { ...options, headers: headers(options.headers ?? {}) });
    if (response.status === 401) {
      await askForKey();
      continue;
    }
    if (!response.ok) throw new Refused(await errorOf(response));
    return response;
  }
}

/** The events of a stream: pairs of a name, "" if it has none, and its data. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const lines = rest.slice(0, end).split("\n");
        rest = rest.slice(end + 2);
        const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
        const name = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "";
        if (data.length) yield [name, data.join("\n")];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
