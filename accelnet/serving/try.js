"use strict";
const form = document.getElementById("try"), answer = document.getElementById("answer");
const button = form.querySelector("button"), preview = document.getElementById("preview");

function element(name, text, parent) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function row() {
  const found = {};
  for (const field of form.elements) {
    if (!field.name) continue;
    const empty = field.value === "";
    found[field.name] = empty ? null : field.dataset.type === "number" ? Number(field.value) : field.value;
  }
  return found;
}

function request() {
  const file = form.elements.file && form.elements.file.files[0];
  if (file) return { body: file, headers: { "content-type": file.type || "application/octet-stream" } };
  const kind = form.dataset.kind;
  const json = kind === "table" ? JSON.stringify(row())
    : kind === "text" ? JSON.stringify(form.elements.text.value) : form.elements.json.value;
  return { body: json, headers: { "content-type": "application/json" } };
}

function show(found) {
  answer.replaceChildren();
  const first = found.label ?? found.prediction ?? found.text;
  if (first !== undefined && typeof first !== "object") element("strong", String(first), answer);
  if (found.probabilities) {
    const box = element("div", undefined, answer);
    box.className = "share";
    const shares = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 10);
    for (const [name, share] of shares) {
      element("span", name, box);
      element("div", undefined, box).style.width = `${100 * share}%`;
      element("span", `${(100 * share).toFixed(1)} %`, box);
    }
  } else {
    element("pre", JSON.stringify(found, null, 1).slice(0, 20000), answer);
  }
}

function fail(text) {
  answer.replaceChildren();
  element("p", text, answer).className = "bad";
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  try {
    const response = await fetch("/predict", { method: "POST", ...request() });
    const found = await response.json();
    if (response.ok) show(found); else fail(found.error);
  } catch (error) {
    fail(`The server does not answer: ${error.message}`);
  }
  button.disabled = false;
});

if (preview) form.elements.file.addEventListener("change", () => {
  const file = form.elements.file.files[0], reader = new FileReader();
  if (!file) return;
  reader.addEventListener("load", () => { preview.src = reader.result; preview.hidden = false; });
  reader.readAsDataURL(file);
});
