// What the pages gain with a script: uploads with a progress bar, badges that turn, copy buttons.
// Everything works without it; nothing here keeps a key, and nothing is asked of another host.
"use strict";

document.documentElement.classList.add("js");

const POLL = { "X-Manifold-Poll": "1", Accept: "text/html" };
const SLOWEST_SECONDS = 30;

/* ---- Parts of a page that are asked for anew while something is under way */

let pause = 0;
let timer = 0;

function wanted() {
  const each = [...document.querySelectorAll("[data-refresh]")];
  return each.length ? Math.min(...each.map((part) => Number(part.dataset.refresh))) : 0;
}

function isBusy(part) {
  // Nobody's open question or selected text is taken away from under him.
  const selected = document.getSelection();
  const isSelecting = selected && !selected.isCollapsed && part.contains(selected.anchorNode);
  return isSelecting || part.querySelector("details[open]") || part.contains(document.activeElement);
}

async function refresh() {
  const response = await fetch(location.href, { headers: POLL, credentials: "same-origin" });
  if (response.redirected) {
    location.reload();
    return;
  }
  if (!response.ok) {
    pause = Math.max(pause, Number(response.headers.get("Retry-After")) || 0);
    return;
  }
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(part.id);
    if (!fresh) continue;
    if (fresh.dataset.refresh) part.dataset.refresh = fresh.dataset.refresh;
    else delete part.dataset.refresh;
    if (isBusy(part) || fresh.innerHTML === part.innerHTML) continue;
    part.replaceChildren(...fresh.childNodes);
    prepare(part);
    pause = 0;
  }
}

function schedule() {
  clearTimeout(timer);
  const seconds = wanted();
  if (!seconds) return;
  // Longer after each look that shows nothing new.
  pause = Math.min(Math.max(seconds, pause * 1.25), Math.max(seconds, SLOWEST_SECONDS));
  timer = setTimeout(async () => {
    try {
      if (!document.hidden) await refresh();
    } catch {
      // The gateway is away for a moment: the next look will tell.
    }
    schedule();
  }, pause * 1000);
}

async function refreshNow() {
  pause = 0;
  try {
    await refresh();
  } finally {
    schedule();
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && wanted()) refreshNow();
});

/* ---- Copy buttons */

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS there is no clipboard but this one.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function prepare(root) {
  for (const button of root.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      const done = await copied(source.textContent);
      button.textContent = done ? "Copied" : "Select it and copy";
      setTimeout(() => { button.textContent = button.dataset.label; }, 2000);
      button.focus();
    });
  }
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const open of document.querySelectorAll("details.confirm[open]")) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});

/* ---- Uploads */

function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

function left(seconds) {
  if (!Number.isFinite(seconds)) return "";
  return seconds < 90 ? `${Math.ceil(seconds)} s left` : `${Math.ceil(seconds / 60)} min left`;
}

function shown(list, file) {
  const item = document.createElement("li");
  const title = document.createElement("span");
  title.className = "title";
  title.append(Object.assign(document.createElement("bdi"), { textContent: file.name }));
  const stop = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Cancel" });
  const bar = Object.assign(document.createElement("progress"), { max: 1, value: 0 });
  bar.setAttribute("aria-label", `Upload of ${file.name}`);
  const said = Object.assign(document.createElement("span"), { className: "said", textContent: "Waiting" });
  item.append(title, stop, bar, said);
  list.prepend(item);
  return { item, title, stop, bar, said };
}

function send(form, file, view) {
  return new Promise((resolve) => {
    const body = new FormData();
    for (const [name, value] of new FormData(form)) {
      if (name !== "file") body.append(name, value);
    }
    // Last, so that all that is said about it is there before it.
    body.append("file", file, file.name);
    const request = new XMLHttpRequest();
    request.open("POST", form.action);
    request.setRequestHeader("Accept", "application/json");
    request.setRequestHeader("X-CSRF-Token", form.elements.csrf_token.value);
    const begun = performance.now();
    request.upload.onprogress = (event) => {
      if (!event.lengthComputable) return;
      const seconds = (performance.now() - begun) / 1000;
      const speed = event.loaded / Math.max(seconds, 0.001);
      view.bar.value = event.loaded / event.total;
      view.said.textContent = event.loaded < event.total
        ? `${size(event.loaded)} of ${size(event.total)}, ${size(speed)}/s, ${left((event.total - event.loaded) / speed)}`
        : "All sent; waiting for the accounts";
    };
    const failed = (text) => {
      view.item.classList.add("failed");
      view.said.textContent = text;
      view.bar.remove();
      view.stop.remove();
      resolve(false);
    };
    request.onload = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* not ours: a proxy's page */ }
      if (request.status !== 201) {
        if (request.status === 401) location.reload();
        failed(answer.error ? answer.error.message : `The upload was refused with status ${request.status}.`);
        return;
      }
      const link = Object.assign(document.createElement("a"), { href: answer.location });
      link.append(...view.title.childNodes);
      view.title.append(link);
      view.bar.value = 1;
      view.said.textContent = `Uploaded, ${size(file.size)}`;
      view.stop.remove();
      resolve(true);
    };
    request.onerror = () => failed("The connection broke. Nothing was stored; try again.");
    request.onabort = () => failed("Cancelled.");
    view.stop.addEventListener("click", () => request.abort());
    request.send(body);
  });
}

function uploads(form) {
  const input = form.elements.file;
  const drop = document.getElementById("drop");
  const list = document.getElementById("uploads");
  let queue = Promise.resolve();
  let underWay = 0;
  input.multiple = true;

  const add = (files) => {
    for (const file of files) {
      const view = shown(list, file);
      let isOff = false;
      view.stop.addEventListener("click", () => { isOff = true; view.item.remove(); }, { once: true });
      underWay += 1;
      queue = queue.then(async () => {
        try {
          if (isOff) return;
          view.said.textContent = "Starting";
          await send(form, file, view);
          await refreshNow();
        } finally {
          underWay -= 1;
        }
      }).catch(() => {});
    }
    input.value = "";
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    add([...input.files]);
  });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) {
    drop.addEventListener(name, () => drop.classList.remove("over"));
  }
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    add([...event.dataTransfer.files]);
  });
  addEventListener("beforeunload", (event) => {
    if (underWay) event.preventDefault();
  });
}

prepare(document);
const form = document.getElementById("upload");
if (form) uploads(form);
schedule();
