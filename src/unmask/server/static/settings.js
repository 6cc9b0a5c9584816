// Policies and caches with their parameters, as forms made of the server's JSON schemas.

/** An element with attributes and children; texts become text, never markup. */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const shown = (value) => (value === null ? "none" : String(value));
const kinds = (schema) => [].concat(schema.type);

/** What is wrong with a text as a value of a schema; "" where it is fine. */
export function fault(schema, text) {
  const expected = `expected ${schema.accepted}`;
  if (text === "none" && kinds(schema).includes("null")) return "";
  if (schema.spec) return balanced(text) ? "" : `${expected}, such as threshold(tau=0.9)`;
  const whole = kinds(schema).includes("integer");
  if (!whole && !kinds(schema).includes("number")) return "";
  const value = Number(text), fits = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) && (!whole || Number.isInteger(value));
  const inside = (schema.minimum === undefined || value >= schema.minimum) && (schema.maximum === undefined || value <= schema.maximum)
    && (schema.exclusiveMinimum === undefined || value > schema.exclusiveMinimum);
  return fits && inside ? "" : expected;
}

function balanced(text) {
  let depth = 0;
  for (const c of text) {
    depth += (c === "(") - (c === ")");
    if (depth < 0) return false;
  }
  return depth === 0;
}

/** One parameter. An empty field stands for the default. */
class Parameter {
  constructor(name, schema, required, id) {
    Object.assign(this, { name, schema, required });
    const choices = schema.enum ? schema.enum.map(shown) : kinds(schema).includes("boolean") ? ["true", "false"] : null;
    if (choices) {
      this.control = make("select", {}, make("option", { value: "" }), ...choices.map((one) => make("option", { value: one }, one)));
    } else {
      this.control = make("input", { type: "text", spellcheck: "false", ...(schema.spec ? {} : { inputmode: "decimal" }) });
      this.control.addEventListener("input", () => this.check());
    }
    const note = `${schema.description}; ${schema.accepted}`;
    this.control.title = note;
    this.control.id = id;
    this.element = make("div", { class: "field parameter", title: note }, make("label", { for: id }, name), this.control);
    this.preset(null);
  }

  /** Show the default; that of a preset where the schema has one. */
  preset(name) {
    const own = this.schema.presets && name in this.schema.presets ? this.schema.presets[name] : this.schema.default;
    const words = this.required ? "required" : shown(own);
    if (this.control.tagName === "SELECT") this.control.options[0].textContent = `default: ${words}`;
    else this.control.placeholder = words;
  }

  get value() {
    return this.control.value.trim();
  }

  set value(text) {
    this.control.value = text;
    if (this.control.value !== text) this.control.value = ""; // no such choice
    this.check();
  }

  check() {
    const wrong = this.value === "" ? (this.required ? `expected ${this.schema.accepted}` : "") : fault(this.schema, this.value);
    this.control.setCustomValidity(wrong && `${this.name}: ${wrong}`);
    this.control.toggleAttribute("aria-invalid", Boolean(wrong && this.value));
  }
}

/** A policy or a cache: which one, and its parameters. */
export class Choice {
  constructor(id, catalogue, title) {
    this.id = id;
    this.known = new Map(catalogue.data.map((one) => [one.id, one]));
    this.select = make("select", { id }, make("option", { value: "" }, `the server's: ${catalogue.default}`),
      ...[...this.known.keys()].map((id) => make("option", { value: id }, id)));
    this.about = make("p", { class: "help" });
    this.own = make("div", { class: "row fields" });
    this.more = make("div", { class: "row fields" });
    this.details = make("details", {}, make("summary", {}, "More parameters"), this.more);
    this.parameters = [];
    this.select.addEventListener("change", () => this.fill());
    this.element = make("div", { class: "choice" }, make("div", { class: "field" }, make("label", { for: id }, title), this.select),
      this.about, this.own, this.details);
    this.fill();
  }

  /** Parameters of the one that is chosen. Those that name files are the server's business. */
  fill() {
    const one = this.known.get(this.select.value), schema = one ? one.parameters : { properties: {}, required: [] };
    this.parameters = Object.entries(schema.properties).filter(([, own]) => !own.file)
      .map(([name, own]) => new Parameter(name, own, schema.required.includes(name), `${this.id}-${name}`));
    const of = (hidden) => this.parameters.filter((p) => Boolean(p.schema.hidden) === hidden).map((p) => p.element);
    this.own.replaceChildren(...of(false));
    this.more.replaceChildren(...of(true));
    this.details.hidden = !this.more.children.length;
    this.details.open = false;
    this.about.textContent = one ? [one.summary, one.paper && `(${one.paper})`, one.refuses && `Refuses ${one.refuses}.`].filter(Boolean).join(" ") : "";
    this.about.hidden = !one;
    const preset = this.parameters.find((p) => p.name === "preset");
    if (preset) preset.control.addEventListener("change", () => this.presets());
    for (const p of this.parameters) p.check();
  }

  presets() {
    const preset = this.parameters.find((p) => p.name === "preset");
    for (const p of this.parameters) if (p !== preset) p.preset(preset.value || preset.schema.default);
  }

  /** What requests send; null: nothing, the server's own is taken. */
  get spec() {
    if (!this.select.value) return null;
    const given = this.parameters.filter((p) => p.value !== "").map((p) => `${p.name}=${p.value}`);
    return given.length ? `${this.select.value}(${given.join(",")})` : this.select.value;
  }

  /** Write the choice into parameters of a link. */
  save(into, prefix) {
    if (!this.select.value) return;
    into.set(prefix, this.select.value);
    for (const p of this.parameters) if (p.value !== "") into.set(`${prefix}.${p.name}`, p.value);
  }

  load(from, prefix) {
    const id = from.get(prefix) || "";
    this.select.value = this.known.has(id) ? id : "";
    this.fill();
    for (const p of this.parameters) p.value = from.get(`${prefix}.${p.name}`) || "";
    if (this.parameters.some((p) => p.name === "preset")) this.presets();
    this.details.open = this.parameters.some((p) => p.schema.hidden && p.value !== "");
  }
}

/** One setting: a policy and a cache. */
export class Setting {
  constructor(letter, policies, caches) {
    this.letter = letter;
    this.policy = new Choice(`${letter}-policy`, policies, "Policy");
    this.cache = new Choice(`${letter}-cache`, caches, "Cache");
    this.caches = caches;
    this.title = make("legend", {}, "Setting");
    this.element = make("fieldset", { class: "card setting" }, this.title, this.policy.element, this.cache.element);
    this.policy.select.addEventListener("change", () => this.beside());
    this.beside();
  }

  /** A policy without a cache has none; the server's own policy has the server's cache. */
  beside() {
    this.cache.select.options[0].textContent = this.policy.select.value ? "none, unless one is chosen" : `the server's: ${this.caches.default}`;
  }

  /** Of requests. */
  get options() {
    return Object.fromEntries([["policy", this.policy.spec], ["cache", this.cache.spec]].filter(([, spec]) => spec !== null));
  }

  save(into) {
    this.policy.save(into, `${this.letter}.policy`);
    this.cache.save(into, `${this.letter}.cache`);
  }

  load(from) {
    this.policy.load(from, `${this.letter}.policy`);
    this.cache.load(from, `${this.letter}.cache`);
    this.beside();
  }
}
