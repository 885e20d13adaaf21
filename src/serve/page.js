"use strict";
const N = 16, COLUMNS = 4, BORDER = 2; // pixels around each image of a picture
const $ = (id) => document.getElementById(id);
const canvas = $("images");
let about, key = sessionStorage.getItem("key") || "", picture = null;

class Refused extends Error {
  constructor(response, sentence) {
    super(sentence);
    this.status = response.status;
    this.after = Number(response.headers.get("retry-after")) || 0;
  }
}

async function ask(path, body) {
  const headers = key ? { authorization: "Bearer " + key } : {};
  if (body) headers["content-type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Refused(response, error || "The service answers with " + response.status + ".");
}

function label() {
  return Number(document.querySelector("#classes input:checked").value);
}

// What is drawn, and what it can be turned into: prompts as they are typed, or classes by name, as a number could be the
// name of another class.
function ends() {
  if (about.reads_text) return [$("prompt").value, $("to-prompt").value];
  return [about.class_names[label()], about.class_names[$("to").value]];
}

function chosen() {
  const [what, other] = ends(), weight = $("weight").value / 100;
  const choice = { [about.reads_text ? "prompts" : "labels"]: what, n: N, seed: Number($("seed").value) };
  if (!("guidance" in about.drawing)) choice.truncation = $("truncation").value / 100;
  return weight && other !== "" ? { ...choice, others: other, weight } : choice;
}

function inWords({ prompts, labels, seed, truncation, others, weight }) {
  const called = (what) => about.reads_text ? `“${what}”` : what;
  const way = weight ? `, ${Math.round(weight * 100)} % of the way to ${called(others)}` : "";
  const how = truncation === undefined ? "" : `, truncation ${truncation}`;
  return `Sixteen times ${called(prompts ?? labels)}${way}: seed ${seed}${how}`;
}

function showChoice() {
  const choice = chosen(), [what, other] = ends();
  $("from").textContent = what;
  for (const button of $("suggestions").children) button.setAttribute("aria-pressed", button.textContent === what);
  $("weight").disabled = other === "";
  $("seed-value").textContent = choice.seed;
  $("truncation-value").textContent = ($("truncation").value / 100).toFixed(2);
  $("weight").setAttribute("aria-valuetext", `${$("weight").value} % of the way to ${other}`);
  const shown = key ? ' -H "Authorization: Bearer $SERVE_API_KEY"' : "";
  const body = JSON.stringify(choice).replaceAll("'", "'\\''");
  $("command").textContent = `curl ${new URL("generate", location)}${shown} --json '${body}' -o images.png`;
}

async function draw(choice) {
  const blob = await (await ask("generate", choice)).blob();
  const whole = await createImageBitmap(blob);
  const size = about.img_size, step = size + BORDER;
  canvas.width = canvas.height = COLUMNS * step - BORDER;
  const context = canvas.getContext("2d");
  for (let i = 0; i < N; i++) {
    const x = (i % COLUMNS) * step, y = Math.floor(i / COLUMNS) * step;
    context.drawImage(whole, x + BORDER, y + BORDER, size, size, x, y, size, size);
  }
  whole.close();
  picture = blob;
  return choice;
}

// One request at a time, each for what is chosen by then: as fast as the service draws.
let drawing = false, changed = false;
async function redraw() {
  showChoice();
  if (ends()[0] === "") return; // a prompt that is not yet typed
  changed = true;
  if (drawing) return;
  drawing = true;
  while (changed) {
    changed = false;
    try {
      const words = inWords(await draw(chosen()));
      say("");
      if (!changed) {
        canvas.setAttribute("aria-label", words);
        $("caption").textContent = words;
      }
    } catch (error) {
      if (error.status === 401) {
        askForKey();
        break;
      }
      const again = error.after || (error instanceof Refused ? 0 : 2);
      say(error instanceof Refused ? error.message : "The service does not answer. Trying again every two seconds.");
      if (!again) continue;
      changed = true;
      await new Promise((resolve) => setTimeout(resolve, 1000 * again));
    }
  }
  drawing = false;
}

function say(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

function askForKey() {
  say(key ? "This key is not the right one." : "");
  key = "";
  sessionStorage.removeItem("key");
  $("main").hidden = true;
  $("ask-key").hidden = false;
  $("key").focus();
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function fileName(extension) {
  return `${ends()[0].replace(/[^\p{L}\p{N}]+/gu, "-")}-seed${chosen().seed}.${extension}`;
}

function build() {
  document.title = `${about.run}: drawn on request`;
  const trained = about.data && ` trained on ${about.data}`;
  $("lead").textContent = `A neural network${trained} makes up what you choose, as you choose it.`;
  const names = about.class_names;
  $("classes").replaceChildren(...names.map((name, i) => {
    const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: "class", value: i, checked: i === 0 });
    text.textContent = name;
    label.append(input, text);
    return label;
  }));
  $("classes").classList.toggle("few", names.length <= 10 && names.every((name) => name.length <= 2));
  $("to").replaceChildren(...names.map((name, i) => new Option(name, i)));
  $("to").value = names.length > 1 ? 1 : 0;
  $("morph").hidden = !about.can_interpolate || (names.length < 2 && !about.reads_text);
  if (about.reads_text) buildPrompts();
  $("truncate").hidden = "guidance" in about.drawing;
  for (const id of ["seed", "weight"]) $(id).value = 0; // browsers keep them over a reload
  $("truncation").value = 100;
  const drawn = Object.entries(about.drawing).filter(([, value]) => value !== "");
  const facts = [
    ["Run", about.run], ["Trained on", about.data || "data without a name"], ["Checkpoint", about.checkpoint],
    ["Weights", about.weights === "ema" ? "moving average (ema)" : "raw"],
    ...drawn.length ? [["Drawn with", drawn.map(([name, value]) => `${name} ${value}`).join(", ")]] : [],
    ["Images", `${about.img_size} × ${about.img_size} pixels, ${about.channels === 1 ? "grey" : "colour"}`],
    ["Commit", about.commit, "code"], ["SHA-256 of the checkpoint", about.checkpoint_sha256, "code long"],
  ];
  $("about").replaceChildren(...facts.map(([term, value, kind]) => {
    const pair = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = term;
    dd.textContent = value;
    if (kind) dd.className = "code";
    if (kind === "code long") pair.className = "long";
    pair.append(dt, dd);
    return pair;
  }));
}

function buildPrompts() {
  const [one = "", two = ""] = about.prompts;
  $("caption").textContent = one ? "" : "Type what to draw.";
  $("morph").classList.add("between-prompts");
  $("by-class").hidden = $("to").hidden = $("from").hidden = true;
  $("by-prompt").hidden = $("to-prompt").hidden = false;
  for (const each of document.querySelectorAll(".kind")) each.textContent = "prompt";
  for (const [id, value] of [["prompt", one], ["to-prompt", two]]) Object.assign($(id), { value, maxLength: about.max_prompt_length });
  $("suggestions").replaceChildren(...about.prompts.map((text) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: text });
    button.addEventListener("click", () => {
      $("prompt").value = text;
      drawPrompt();
    });
    return button;
  }));
}

// Another prompt begins with itself.
function drawPrompt() {
  $("weight").value = 0;
  redraw();
}

async function begin() {
  try {
    about = await (await ask("about")).json();
  } catch (error) {
    if (error.status === 401) return askForKey();
    say(error instanceof Refused ? error.message : "The service does not answer. Trying again every two seconds.");
    return setTimeout(begin, 1000 * (error.after || 2));
  }
  say("");
  if (key) sessionStorage.setItem("key", key);
  $("ask-key").hidden = true;
  build();
  $("main").hidden = false;
  redraw();
}

$("classes").addEventListener("change", () => {
  // Another class begins with itself, and may be turned into the next one.
  if (Number($("to").value) === label()) $("to").value = (label() + 1) % about.n_classes;
  $("weight").value = 0;
  redraw();
});
$("by-prompt").addEventListener("submit", (event) => {
  event.preventDefault();
  drawPrompt();
});
$("to-prompt").addEventListener("change", redraw);
for (const id of ["seed", "truncation", "weight", "to"]) $(id).addEventListener("input", redraw);
$("another").addEventListener("click", () => {
  $("seed").value = (Number($("seed").value) + 1 + Math.floor(Math.random() * 999)) % 1000; // never the same
  redraw();
});
$("save-png").addEventListener("click", () => picture && save(picture, fileName("png")));
$("save-npz").addEventListener("click", async () => {
  try {
    save(await (await ask("generate", { ...chosen(), format: "npz" })).blob(), fileName("npz"));
  } catch (error) {
    say(error instanceof Refused ? error.message : "The service does not answer: try again.");
  }
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("command").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("command")); // where only pages over HTTPS may write to the clipboard
    $("copy").textContent = "Selected";
  }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
});
$("ask-key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  $("key").value = "";
  begin();
});
begin();
