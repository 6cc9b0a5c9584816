// A response as it fills: what each forward pass has done to it, and how that looks.

import { make } from "./settings.js";

const STOPS = ["#4454a0", "#367aa8", "#289696", "#3ab076", "#82cc50", "#ceda3c", "#fce85a"]; // unmask.viz has the same
const ENDS = new Set(["<|endoftext|>", "<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>"]);
const FEW = 8; // passes that the colours are spread over at least
const STORY = 12; // predictions of a position that are told

const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : word.endsWith("pass") ? "es" : "s"}`;
const sure = (p) => (p >= 0.9995 ? "1.00" : p.toFixed(p > 0.99 ? 3 : 2).replace(/^0/, ""));

/** Fit to be shown: what would not be seen, or would move what stands around it, as a sign of its own. */
export function clean(text) {
  if (ENDS.has(text)) return "∎";
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd") || "\u00a0";
}

/** [r, g, b] of a share 0..1 of the forward passes: early is blue, late is yellow. */
export function order(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
  const [a, b] = [rgb(STOPS[low]), rgb(STOPS[low + 1])];
  return a.map((v, i) => Math.round(v + (b[i] - v) * (at - low)));
}

const css = (colour) => `rgb(${colour.join(" ")})`;
const light = (colour) => colour.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0); // WCAG 2.1, relative luminance
const inkOn = (colour) => (light(colour) > 0.18 ? "#000000" : "#ffffff"); // either has a contrast of 4.5 at least

/** What stands at each position after so many forward passes. */
export class Replay {
  constructor(start) {
    this.start = start;
    this.frames = [];
    this.rewind();
  }

  rewind() {
    this.t = 0;
    this.cells = Array.from({ length: this.start.length }, () => ({ kind: "mask", losses: 0 }));
    this.size = this.start.length;
    for (const { at, text } of this.start.fixed) this.cells[at] = { kind: "given", text, losses: 0 };
    this.guesses = new Map();
  }

  seek(t) {
    if (t < this.t) this.rewind();
    while (this.t < t) this.apply(this.frames[this.t]);
  }

  apply(frame) {
    this.t += 1;
    for (const cell of this.cells) delete cell.lost;
    this.size = frame.length; // some policies change it
    while (this.cells.length < this.size) this.cells.push({ kind: "mask", losses: 0 });
    for (const at of frame.remasked) {
      const { text, losses } = this.cells[at];
      this.cells[at] = { kind: "mask", losses: losses + 1, lost: text };
    }
    for (const { at, text, p } of frame.committed) {
      const before = this.cells[at];
      this.cells[at] = { kind: "token", text, p, t: this.t, losses: before.losses + (before.kind === "token") };
    }
    this.guesses = new Map(frame.provisional.map((one) => [one.at, one]));
  }

  get frame() {
    return this.t ? this.frames[this.t - 1] : null;
  }
}

/** One response on the page. */
export class Panel {
  constructor(letter, pace, over) {
    Object.assign(this, { letter, pace, over, replay: null, chips: [], timer: null, following: true, end: null, problem: null, chosen: null, answer: "" });
    this.title = make("h2", {}, `Setting ${letter.toUpperCase()}`);
    this.now = make("div", { class: "now" });
    this.problems = make("p", { class: "problem", role: "alert", hidden: "" });
    this.canvas = make("div", { class: "canvas", tabindex: "0", role: "group", "aria-label": "Canvas; left and right choose a position" });
    this.slider = make("input", { type: "range", min: "0", max: "0", value: "0", "aria-label": "Forward pass" });
    this.count = make("output");
    this.bars = make("div", { class: "bars", "aria-hidden": "true" });
    this.walk = make("div", { class: "walk", hidden: "" }, this.bars, make("div", { class: "row" }, this.slider, this.count));
    this.story = make("p", { class: "story", role: "status" });
    this.text = make("pre", { class: "answer", "aria-label": "Answer" });
    this.stats = make("dl", { class: "stats" });
    this.result = make("div", { hidden: "" }, this.stats, this.text);
    this.element = make("section", { class: "panel card", "aria-label": `Setting ${letter.toUpperCase()}` },
      make("header", {}, this.title), this.problems, this.now, this.canvas, this.walk, this.story, this.result);
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.canvas.addEventListener("click", (event) => {
      const chip = event.target.closest(".t[data-at]");
      if (chip) this.choose(Number(chip.dataset.at));
    });
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !this.chips.length) return;
      event.preventDefault();
      this.choose(Math.min(Math.max((this.chosen ?? (step > 0 ? -1 : 0)) + step, 0), this.visible - 1));
    });
    this.now.append(make("span", {}, "waiting for the first forward pass"));
  }

  /** What the server tells. */
  take(event) {
    const told = event.choices[0];
    if (!told) return;
    this.answer += told.delta ? told.delta.content || "" : told.text || "";
    const own = told.unmask;
    if (!own) return;
    if (own.event === "start") this.begin(own);
    else if (own.event === "step") this.replay.frames.push(own);
    else if (own.event === "end") this.end = own;
    this.schedule();
  }

  begin(start) {
    this.replay = new Replay(start);
    this.title.replaceChildren(clean(start.policy), make("span", {}, ` + ${clean(start.cache)}`));
    this.chips = [];
    const lead = this.lead ? start.prompt.filter((text) => !/^<\|.*\|>$/.test(text)).map((text) => make("span", { class: "lead" }, text)) : [];
    this.rest = make("span", { class: "rest", hidden: "" });
    this.canvas.replaceChildren(...lead, this.rest);
    this.canvas.classList.toggle("dense", start.length > 320);
    this.draw();
  }

  /** Show the next forward pass when it is due. */
  schedule() {
    if (this.timer || !this.following || !this.replay) return;
    const late = this.replay.t < this.replay.frames.length;
    if (!late && !this.end) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      if (!this.following) return;
      this.replay.seek(late ? (this.pace() ? this.replay.t + 1 : this.replay.frames.length) : this.replay.t);
      this.draw();
      if (this.replay.t < this.replay.frames.length) this.schedule();
      else if (this.end) this.complete();
    }, late && this.pace() && this.replay.t ? 1000 / this.pace() : 16);
  }

  /** Nothing more comes: stopped, or failed with a message. */
  halt(message) {
    clearTimeout(this.timer);
    this.timer = null;
    this.following = false;
    if (message) {
      this.problems.textContent = message;
      this.problems.hidden = false;
    }
    if (!this.replay) this.now.replaceChildren(make("span", {}, message ? "failed" : "stopped"));
    else if (!this.end) {
      this.replay.seek(this.replay.frames.length);
      this.slide();
      this.draw();
      this.now.append(make("span", { class: "lost" }, message ? "failed" : "stopped"));
    } else if (this.result.hidden) this.complete();
  }

  complete() {
    const { end } = this, past = !this.replay.start.fixed.length && end.finish_reason === "eos";
    this.following = false;
    this.replay.seek(this.replay.frames.length);
    this.last = past || end.finish_reason === "stop" ? Math.min(end.tokens + past, this.replay.size) : this.replay.size;
    const hidden = this.replay.size - this.last;
    this.rest.hidden = !hidden;
    this.rest.textContent = `+ ${plural(hidden, "position")} behind the end`;
    this.figures();
    this.text.textContent = this.answer;
    this.text.hidden = !this.answer;
    this.result.hidden = false;
    if (this.chosen === null) this.story.textContent = "Choose a position to read its story.";
    this.slide();
    this.draw();
    this.over(`Setting ${this.letter.toUpperCase()}: ${plural(end.tokens, "token")} in ${plural(end.nfe, "forward pass")}.`);
  }

  figures() {
    const { end } = this, rate = end.seconds > 0 ? end.tokens / end.seconds : 0;
    const rows = [
      ["forward passes (NFE)", number(end.nfe)], ["tokens", number(end.tokens)], ["tokens per forward pass", number(end.tpf, 2)],
      ["tokens/s", number(rate, rate < 10 ? 1 : 0)], ["seconds", number(end.seconds, 2)],
      ["first stable token, s", end.first_token_seconds === null ? "none" : number(end.first_token_seconds, 2)],
      ["positions computed", number(end.positions)], ["ended by", { eos: "end of text", length: "most tokens", stop: "stop string" }[end.finish_reason] || end.finish_reason],
      ["seed", String(end.seed)],
    ];
    this.stats.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  /** The slider, and a bar for each forward pass: as high as it committed much, in the colour of its phase. */
  slide() {
    const { frames } = this.replay, most = Math.max(1, ...frames.map((f) => f.committed.length));
    this.phases = [...new Set(frames.flatMap((f) => f.phases))];
    this.slider.max = frames.length;
    this.walk.hidden = !frames.length;
    this.bars.replaceChildren(...frames.map((f) => {
      const bar = make("span", { class: f.phases.length ? `phase-${this.phases.indexOf(f.phases[0]) % 4}` : "" });
      bar.style.setProperty("height", `${Math.max(6, (100 * f.committed.length) / most)}%`);
      return bar;
    }));
  }

  go(t) {
    if (this.following) return;
    this.replay.seek(t);
    this.draw();
  }

  /** Dress the canvas; elements that look as before are not touched. */
  draw() {
    const { replay } = this, { t, frame } = replay, last = this.end ? replay.frames.length : Math.max(t, FEW);
    const span = frame && frame.notes.start !== undefined && frame.notes.end !== undefined ? [frame.notes.start, frame.notes.end] : null;
    while (this.chips.length < replay.cells.length) {
      this.chips.push(make("span", { class: "t mask", "data-at": this.chips.length }));
      this.rest.before(this.chips.at(-1), make("br", { hidden: "" }));
    }
    this.visible = Math.min(replay.size, this.last ?? replay.size);
    this.chips.forEach((chip, at) => {
      chip.hidden = at >= this.visible;
      const cell = replay.cells[at], guess = cell.kind === "mask" ? replay.guesses.get(at) : undefined;
      const kind = cell.lost !== undefined ? "lost" : guess ? "guess" : cell.kind, text = cell.lost ?? (guess ? guess.text : cell.text);
      const fresh = cell.t === t && t > 0, inside = span && at >= span[0] && at < span[1];
      const colour = kind === "token" ? order((cell.t - 1) / Math.max(last - 1, 1)) : null, p = guess ? guess.p : null;
      const look = [kind, text, colour, p, fresh, inside, cell.losses, this.chosen === at].join("\u0000");
      if (chip.look === look) return;
      chip.look = look;
      chip.className = ["t", kind, fresh && "fresh", cell.losses && "again", inside && "in", this.chosen === at && "chosen"].filter(Boolean).join(" ");
      chip.textContent = text === undefined ? "·" : clean(text);
      chip.dataset.n = kind === "lost" ? "✕" : kind === "token" ? `${cell.losses ? "↺" : ""}${cell.t}` : "";
      chip.style.setProperty("--tok", colour ? css(colour) : "");
      chip.style.setProperty("--tok-ink", colour ? inkOn(colour) : "");
      chip.style.setProperty("--sure", p === null ? "" : (0.3 + 0.35 * p).toFixed(2));
      chip.nextSibling.hidden = !(kind !== "lost" && (text || "").endsWith("\n")) || chip.hidden;
    });
    this.tell(frame, t, span);
    if (this.chosen !== null) this.choose(this.chosen, false);
  }

  tell(frame, t, span) {
    const parts = [], say = (value, words) => parts.push(make("span", {}, make("b", {}, value), ` ${words}`));
    if (!frame) parts.push(make("span", {}, "before the first forward pass: all positions are masked"));
    else {
      parts.push(make("span", {}, "forward pass ", make("b", {}, String(t))));
      const known = this.phases || [...new Set(this.replay.frames.flatMap((f) => f.phases))];
      for (const name of frame.phases) parts.push(make("span", { class: `phase phase-${known.indexOf(name) % 4}` }, clean(name)));
      if (span) say(`${span[0]}–${span[1] - 1}`, "span");
      say(number(frame.committed.length), "committed");
      if (frame.remasked.length) parts.push(make("span", { class: "lost" }, `${number(frame.remasked.length)} revoked`));
      say(number(frame.masked), "masked");
      for (const [name, value] of Object.entries(frame.notes)) {
        if (!["start", "end"].includes(name) && !(name === "candidate" && value < 0)) say(number(value, 3), clean(name.replaceAll("_", " ")));
      }
    }
    this.now.replaceChildren(...parts);
    this.slider.value = t;
    this.slider.setAttribute("aria-valuetext", `forward pass ${t} of ${this.replay.frames.length}`);
    this.count.textContent = `${t} / ${this.replay.frames.length}`;
    [...this.bars.children].forEach((bar, i) => bar.classList.toggle("at", i === t - 1));
  }

  /** Choose a position: its story up to now is told below the canvas. */
  choose(at, redraw = true) {
    this.chosen = at;
    const given = this.replay.start.fixed.find((one) => one.at === at), parts = [make("b", {}, `position ${at}`)], guesses = [];
    if (given) parts.push(` was given: “${clean(given.text)}”`);
    this.replay.frames.slice(0, this.replay.t).forEach((frame, i) => {
      const one = frame.committed.find((c) => c.at === at), guess = frame.provisional.find((c) => c.at === at);
      if (one) parts.push(" · ", make("b", {}, `“${clean(one.text)}”`), ` by forward pass ${i + 1}, confidence ${sure(one.p)}`);
      if (frame.remasked.includes(at)) parts.push(` · revoked by forward pass ${i + 1}`);
      if (guess) guesses.push(`${i + 1}: “${clean(guess.text)}” ${sure(guess.p)}`);
    });
    if (guesses.length) parts.push(` · predicted by forward pass ${guesses.slice(-STORY).join(", ")}`);
    this.story.replaceChildren(...parts);
    if (redraw) this.draw();
  }
}

/** What the signs mean. */
export function legend() {
  const chip = (kind, text) => make("span", { class: `t ${kind}` }, text), scale = make("span", { class: "scale" });
  scale.style.setProperty("background", `linear-gradient(to right, ${STOPS.join(", ")})`);
  return [["committed early", scale, "late"], [chip("guess", "word"), "provisional"], [chip("lost", "word"), "revoked by this forward pass"],
    ["↺ committed again"], [chip("mask", "·"), "masked"], ["⏎ newline"], ["∎ end of text"]]
    .map((parts) => make("span", {}, ...parts));
}
