// The page: what is asked, with which settings, and what comes of it.

import { Panel, legend } from "./canvas.js";
import { Setting, fault, make } from "./settings.js";
import { Failure, read, stream } from "./stream.js";

const $ = (id) => document.getElementById(id);
const MODES = {
  chat: {
    path: "/v1/chat/completions", system: "System message", label: "Message", rows: 4,
    help: "A message of a user, in the model's chat template.",
  },
  completion: { path: "/v1/completions", label: "Prompt", rows: 6, help: "Text as it stands, without a chat template; the response goes on from it." },
  infill: {
    path: "/v1/infill", system: "What the text answers", label: "Text with gaps", rows: 6,
    help: "A gap is [MASK] (one token) or [MASK*12]; all else stays as it is. \\[MASK] is the text itself.",
  },
};
const JARS = "In the morning Uma counts 11 jars. Then the number of jars doubles. Then 7 jars are added. What is the number of jars now?";
const EXAMPLES = { // for the bundled model, which answers problems of these kinds
  "word problem": { mode: "chat", prompt: JARS },
  sudoku: { mode: "chat", prompt: "Solve the sudoku:\n0214\n4132\n1420\n0340" },
  "waiting line": { mode: "chat", prompt: 'Queue: ["Lara Park","Finn Evans","Kate Owen"]\nReverse the line. Reply with the list only.' },
  infill: { mode: "infill", system: "Amy has 3 apples. She buys 4 more, and then 5 more. How many apples does Amy have?", prompt: "3+4=[MASK]\n7+[MASK]=[MASK*2]\nAnswer: 12" },
};
const FIELDS = ["system", "prompt", "length", "temperature", "seed", "pace"];
const NUMBERS = ["length", "temperature", "seed"];
const state = { settings: [], panels: [], running: null, card: null };

const mode = () => document.querySelector("input[name=mode]:checked").value;
const pace = () => Number($("pace").value);
const notice = (text) => { $("notice").textContent = text; };

// --- the form

function arrange() {
  const now = mode(), about = MODES[now], two = $("compare").checked;
  for (const one of document.querySelectorAll("[data-for]")) one.hidden = !one.dataset.for.split(" ").includes(now);
  $("system-label").textContent = about.system || "";
  $("prompt-label").textContent = about.label;
  $("prompt").rows = about.rows;
  $("prompt-help").textContent = about.help;
  $("turns-field").hidden = !two;
  state.settings.forEach((one, i) => {
    one.element.hidden = i > 0 && !two;
    one.title.textContent = two ? `Setting ${one.letter.toUpperCase()}` : "Setting";
  });
  $("settings").classList.toggle("two", two);
}

function check(input) {
  const { type, min } = input.dataset, schema = { type, accepted: type === "integer" ? "a whole number" : "a number" };
  if (min !== undefined) Object.assign(schema, { minimum: Number(min), accepted: `${schema.accepted} of at least ${min}` });
  if (input.dataset.max) Object.assign(schema, { maximum: Number(input.dataset.max), accepted: `a whole number from ${min} to ${input.dataset.max}` });
  const wrong = input.value.trim() === "" ? "" : fault(schema, input.value.trim());
  input.setCustomValidity(wrong);
  input.toggleAttribute("aria-invalid", Boolean(wrong));
}

/** The body of a request with one of the settings. */
function body(setting) {
  const now = mode(), made = { stream: true, unmask: { ...setting.options, stream: "steps" } };
  for (const [name, id] of [["max_tokens", "length"], ["temperature", "temperature"], ["seed", "seed"]]) {
    const value = $(id).value.trim();
    if (value !== "" && !(now === "infill" && id === "length")) made[name] = Number(value);
  }
  const prompt = $("prompt").value, system = $("system").value.trim();
  if (now === "completion") return { ...made, prompt };
  if (now === "infill") return { ...made, text: prompt, ...(system ? { prompt: system } : {}) };
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
  return { ...made, messages };
}

// --- running

async function run() {
  if (state.running || !$("form").reportValidity()) return;
  if (!$("prompt").value.trim()) {
    $("prompt").focus();
    return notice("There is nothing to decode yet.");
  }
  history.replaceState(null, "", link());
  const used = state.settings.filter((_, i) => i === 0 || $("compare").checked);
  const ended = [];
  state.panels = used.map((one) => new Panel(one.letter, pace, (text) => notice([...ended, text].join(" ")) || ended.push(text)));
  for (const panel of state.panels) panel.lead = mode() !== "chat";
  $("panels").className = used.length > 1 ? "two" : "one";
  $("panels").replaceChildren(...state.panels.map((panel) => panel.element));
  const control = new AbortController();
  state.running = control;
  $("stop").hidden = false;
  $("run").disabled = true;
  notice("");
  const decode = (i) => follow(state.panels[i], MODES[mode()].path, body(used[i]), control.signal);
  try {
    if ($("turns").checked) for (let i = 0; i < used.length; i++) await decode(i);
    else await Promise.all(used.map((_, i) => decode(i)));
  } finally {
    state.running = null;
    $("stop").hidden = true;
    $("run").disabled = false;
  }
}

/** Show a streamed reply in a panel. */
async function follow(panel, path, asked, signal) {
  if (signal.aborted) return panel.halt("");
  try {
    for await (const event of stream(path, asked, $("key").value, signal)) panel.take(event);
  } catch (error) {
    if (error.name === "AbortError") return panel.halt("");
    if (!(error instanceof Failure)) {
      panel.halt("The page cannot read what the server sends.");
      throw error;
    }
    panel.halt(error.message);
    if (error.status === 401) askKey();
  }
}

function stop() {
  if (state.running) state.running.abort();
  for (const panel of state.panels) panel.halt("");
}

function askKey() {
  $("key-field").hidden = false;
  $("key").focus();
}

// --- links

/** The address of this page with what is asked; never the key. */
function link() {
  const made = new URLSearchParams([["mode", mode()]]);
  for (const id of FIELDS) if ($(id).value !== "" && !(id === "pace" && $(id).value === "16")) made.set(id, $(id).value);
  for (const id of ["compare", "turns"]) if ($(id).checked) made.set(id, "1");
  state.settings.forEach((one, i) => { if (i === 0 || $("compare").checked) one.save(made); });
  return `${location.pathname}#${made}`;
}

function load(text) {
  const from = new URLSearchParams(text), wanted = from.get("mode");
  for (const one of document.querySelectorAll("input[name=mode]")) one.checked = one.value === wanted && !one.disabled;
  if (!document.querySelector("input[name=mode]:checked")) document.querySelector("input[name=mode]:not(:disabled)").checked = true;
  for (const id of FIELDS) $(id).value = from.get(id) || "";
  if (!$("pace").value) $("pace").value = "16";
  for (const id of NUMBERS) check($(id));
  for (const id of ["compare", "turns"]) $(id).checked = from.get(id) === "1";
  for (const one of state.settings) one.load(from);
  arrange();
}

async function share() {
  const url = new URL(link(), location.href).href;
  history.replaceState(null, "", url);
  try {
    await navigator.clipboard.writeText(url);
    notice("The link is in the clipboard. It holds the prompt and the settings.");
  } catch { // not allowed, or not over a secure connection
    $("link-field").hidden = false;
    $("link").value = url;
    $("link").select();
    notice("Copy the link from the field. It holds the prompt and the settings.");
  }
}

// --- the beginning

function example(name) {
  const one = EXAMPLES[name];
  if (!one) return;
  document.querySelector(`input[name=mode][value=${one.mode}]`).checked = true;
  $("prompt").value = one.prompt;
  $("system").value = one.system || "";
  arrange();
}

async function start() {
  let models, policies, caches;
  try {
    [models, policies, caches] = await Promise.all(["/v1/models", "/v1/policies", "/v1/caches"].map((path) => read(path, $("key").value)));
  } catch (error) {
    if (error.status === 401) askKey();
    notice(error.message);
    return;
  }
  const card = models.data[0], about = card.unmask;
  state.card = card;
  $("model").textContent = `${card.id}, context of ${about.context} tokens`;
  $("length").placeholder = about.gen_length;
  $("length").dataset.max = about.max_tokens;
  if (!about.chat) document.querySelector("input[value=chat]").disabled = true;
  state.settings = ["a", "b"].map((letter) => new Setting(letter, policies, caches));
  $("settings").replaceChildren(...state.settings.map((one) => one.element));
  $("examples").replaceChildren(make("option", { value: "" }, "choose"), ...Object.keys(EXAMPLES).map((name) => make("option", {}, name)));
  $("examples-field").hidden = card.id !== "unmask-tiny";
  load(location.hash.slice(1));
  if (!location.hash && card.id === "unmask-tiny") example("word problem");
  $("run").disabled = false;
  notice("");
}

$("run").disabled = true;
$("legend").replaceChildren(...legend());
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("form").addEventListener("change", (event) => {
  if (event.target.id === "examples") example(event.target.value);
  else if (event.target.id === "key" && !state.card) start();
  else if (state.card) arrange();
});
for (const id of NUMBERS) $(id).addEventListener("input", (event) => check(event.target));
$("stop").addEventListener("click", stop);
$("share").addEventListener("click", share);
addEventListener("hashchange", () => { if (state.card) load(location.hash.slice(1)); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && state.card) {
    event.preventDefault();
    run();
  } else if (event.key === "Escape") stop();
});
start();
