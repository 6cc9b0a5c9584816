// The page: one panel per trace, all at the same time t.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { row: null, t: 0, most: 0, timer: null, panels: [] };
const WIDEST = 72; // pixels of a forward on the time axis
let colours = theme();

/** An element with attributes and children; texts become text, never markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;
const percent = (sure) => (sure >= 0.9995 ? "1.00" : sure.toFixed(sure > 0.99 ? 3 : 2).replace(/^0/, ""));

const phased = data.traces.some((trace) => trace.rows.some((r) => r.forwards.some((f) => Object.values(f.notes).some((v) => typeof v === "boolean"))));

class Panel {
  constructor(trace, row) {
    this.run = new Run(trace, row);
    this.chosen = null;
    this.width = 0;
    this.drawn = [];
    const run = this.run, title = make("h2", {}, clean(trace.policy), make("span", {}, ` + ${clean(trace.cache)}`));
    this.now = make("div", { class: "now" });
    this.canvas = make("div", { class: "canvas", tabindex: "0", role: "region", "aria-label": `Canvas of ${clean(trace.policy)}` });
    this.canvas.classList.toggle("dense", run.used - run.lead > 320);
    this.score = make("div", { class: "score" });
    this.readout = make("p", { class: "readout", role: "status" });
    this.element = make("section", { class: "panel", "aria-label": `${clean(trace.policy)} with cache ${clean(trace.cache)}` },
      make("header", {}, title, this.facts()), this.now, make("div", {}, this.canvas, this.readout), this.score);
    this.fill();
    this.figures();
    this.choose(null);
  }

  facts() {
    const { run } = this, mean = run.forwards.reduce((sum, f) => sum + f.work, 0) / Math.max(run.n, 1);
    const seconds = run.forwards.reduce((sum, f) => sum + f.seconds, 0);
    const facts = make("p", { class: "facts" });
    const say = (value, words) => facts.append(make("b", {}, value), ` ${words}`);
    say(number(run.tokens), `token${run.tokens === 1 ? "" : "s"} in `);
    say(number(run.n), `forward${run.n === 1 ? "" : "s"} · `);
    say(number(run.tokens / Math.max(run.n, 1), 2), "tokens per forward · ");
    say(number(mean, 1), "positions computed per forward · ");
    say(number(seconds, 2), `s · ${clean(run.trace.model)} · ${clean(run.trace.name)}`);
    return facts;
  }

  /** The tokens' elements; `show` dresses them. */
  fill() {
    const { run } = this;
    this.chips = [];
    for (let p = run.lead; p < run.used; p++) {
      const chip = make("span", { class: "t mask", "data-p": p });
      this.chips.push(chip);
      this.canvas.append(chip);
    }
    const rest = run.length - run.used;
    if (rest) this.canvas.append(make("span", { class: "rest" }, `+ ${plural(rest, "position")} ${run.row.finished ? "behind the end of text, never filled" : "not filled"}`));
    this.canvas.addEventListener("click", (e) => {
      const chip = e.target.closest(".t");
      if (chip) this.choose(Number(chip.dataset.p));
    });
  }

  figures() {
    const { run } = this, figure = (title, note, draw, attributes = { role: "img", "aria-label": `${title}: ${note}` }) => {
      const canvas = make("canvas", attributes), one = make("figure", {}, make("figcaption", {}, make("b", {}, title), make("span", {}, note)), canvas);
      canvas.addEventListener("pointermove", (e) => tip(e, this.cellText(canvas, e)));
      canvas.addEventListener("pointerleave", () => tip(null));
      canvas.addEventListener("click", (e) => {
        const [t, p] = this.cell(canvas, e);
        if (p !== null) this.choose(p);
        pause();
        go(t);
      });
      this.score.append(one);
      this.drawn.push({ canvas, draw });
      return canvas;
    };
    if (!run.n) {
      this.score.append(make("p", {}, "The trace has no forward of this row."));
      return;
    }
    const written = run.forwards.map((f) => f.committed.length), lost = run.forwards.map((f) => f.remasked.length);
    const work = run.forwards.map((f) => f.work), none = work.map(() => 0), taken = lost.reduce((a, b) => a + b, 0);
    if (phased) figure("Phases", run.phases.map(clean).join(", ") || "the policy has none", (c, n) => drawPhases(c, run, n, colours));
    figure("Tokens committed", `at most ${Math.max(...written)} a forward${taken ? `; ${taken} revoked, downwards in red` : ""}`,
      (c, n) => drawBars(c, written, lost, n, colours.of("commit"), colours));
    figure("Positions computed", `at most ${number(Math.max(...work), 1)} a forward, averaged over the layers`,
      (c, n) => drawBars(c, work, none, n, colours.of("bar"), colours));
    const slider = { role: "slider", tabindex: "0", "aria-orientation": "vertical", "aria-valuemin": run.lead, "aria-valuemax": run.used - 1,
      "aria-valuenow": run.lead, "aria-label": "Confidence by position and forward; up and down choose a position" };
    this.map = figure("Confidence", run.confidence ? `positions ${run.lead} to ${run.used - 1} downwards, forwards to the right` : "not in this trace; commits alone",
      (c, n) => drawConfidence(c, run, n, colours), slider);
    this.map.dataset.low = run.lead;
    this.map.dataset.high = run.used;
    this.map.addEventListener("keydown", (e) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[e.key];
      if (!step) return;
      e.preventDefault();
      this.choose(Math.min(Math.max((this.chosen === null ? run.lead - (step > 0) : this.chosen) + step, run.lead), run.used - 1));
    });
    if (run.computed) {
      const note = `share of ${plural(run.trace.layers, "layer")}; prompt above the line`;
      const cache = figure("Computed by the cache", note, (c, n) => drawComputed(c, run, n, colours));
      cache.dataset.low = 0;
      cache.dataset.high = run.length;
    }
    for (const one of this.score.querySelectorAll("figure")) one.append(make("div", { class: "cursor", hidden: "" }));
  }

  /** Forwards that the time axis has room for; few of them do not fill it. */
  columns() {
    return Math.max($("scale").checked ? state.most : this.run.n, this.width / WIDEST, 1);
  }

  /** [t, position or null] under a pointer. */
  cell(canvas, event) {
    const box = canvas.getBoundingClientRect(), { low, high } = canvas.dataset;
    const t = Math.min(Math.floor(((event.clientX - box.left) / box.width) * this.columns()) + 1, this.run.n);
    if (low === undefined) return [Math.max(t, 1), null];
    const p = Number(low) + Math.floor(((event.clientY - box.top) / box.height) * (high - low));
    return [Math.max(t, 1), Math.min(Math.max(p, Number(low)), high - 1)];
  }

  cellText(canvas, event) {
    const { run } = this, [t, p] = this.cell(canvas, event), f = run.forward(t);
    const words = [`forward ${t}`];
    if (run.phase(t) >= 0) words.push(clean(run.phases[run.phase(t)]));
    if (p === null) return [...words, `${f.committed.length} committed`, `${number(f.work, 1)} positions computed`].join(" · ");
    const now = p < run.lead ? { text: run.text(run.row.prompt[p]) } : run.at(p, t), sure = p < run.lead ? null : run.sure(p, t);
    words.push(`position ${p}`);
    if (now.text !== undefined) words.push(`“${now.text}”`);
    if (sure !== null) words.push(`confidence ${percent(sure)}`);
    if (now.t === t) words.push("committed here");
    if (now.lost !== undefined) words.push(`“${now.lost}” revoked here`);
    if (run.computed) words.push(`computed in ${Math.round(run.work(p, t) * 100)} % of the layers`);
    return words.join(" · ");
  }

  /** Draw the figures; after a change of size, theme or scale. */
  draw() {
    this.width = this.drawn.length ? this.drawn[0].canvas.clientWidth : 0;
    for (const { canvas, draw } of this.drawn) draw(canvas, this.columns());
    for (const cursor of this.element.querySelectorAll(".cursor")) cursor.style.top = `${cursor.parentElement.querySelector("canvas").offsetTop - 3}px`;
    this.move();
  }

  move() {
    const t = Math.min(state.t, this.run.n), cell = this.width / this.columns(); // measured when drawn: not once a step
    for (const cursor of this.element.querySelectorAll(".cursor")) {
      cursor.hidden = t < 1;
      cursor.style.left = `${(t - 1) * cell - 1.5}px`;
      cursor.style.width = `${Math.max(cell, 1) + 3}px`;
    }
  }

  /** Dress the canvas for the time; elements that look as before are not touched. */
  show() {
    const { run } = this, t = Math.min(state.t, run.n), phase = run.phase(t), range = state.t > run.n ? null : run.range(t);
    let first = null;
    this.chips.forEach((chip, i) => {
      const p = run.lead + i, now = run.at(p, t), sure = now.kind === "mask" ? run.sure(p, t) : null;
      const inside = range && p >= range[0] && p < range[1] ? phase : -2, fresh = now.t === t && t === state.t;
      const lost = t === state.t ? now.lost : undefined, look = [now.kind, now.text, now.t, sure, inside, fresh, lost, now.losses, this.chosen === p].join("\u0000");
      if (fresh && !first) first = chip;
      if (chip.look === look) return;
      chip.look = look;
      chip.className = ["t", lost !== undefined ? "lost" : now.kind, fresh && "fresh", now.losses && "again", inside > -2 && "in", this.chosen === p && "chosen"].filter(Boolean).join(" ");
      chip.textContent = lost !== undefined ? lost : now.kind === "mask" ? "·" : now.text;
      chip.dataset.n = lost !== undefined ? "✕" : now.kind === "token" ? `${now.losses ? "↺" : ""}${now.t}` : "";
      const back = now.kind === "token" ? orderOf(now.t, run.n) : sure !== null && lost === undefined ? colours.heat(sure) : null;
      chip.style.setProperty("--tok", back ? css(back) : "");
      chip.style.setProperty("--tok-ink", back ? inkOn(back) : "");
      chip.style.setProperty("--phase", inside > -2 ? colours.phases[Math.max(phase, 0) % 4] : "");
    });
    this.breaks();
    if (first && state.timer) this.follow(first);
    this.tell(t, phase, range);
    this.move();
  }

  /** A newline token ends its line, as long as it stands. */
  breaks() {
    for (const chip of this.chips) {
      const wanted = chip.textContent.endsWith("⏎") && !chip.classList.contains("lost"), after = chip.nextSibling, there = after && after.nodeName === "BR";
      if (wanted && !there) chip.after(make("br"));
      else if (!wanted && there) after.remove();
    }
  }

  follow(chip) {
    const box = this.canvas, top = chip.offsetTop, bottom = top + chip.offsetHeight;
    if (top < box.scrollTop || bottom > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 3;
  }

  tell(t, phase, range) {
    const { run } = this, f = run.forward(t), parts = [];
    const say = (value, words) => parts.push(make("span", {}, make("b", {}, value), ` ${words}`));
    if (!f) parts.push(make("span", {}, run.n ? "before the first forward: all masks" : "no forward"));
    else if (state.t > run.n) parts.push(make("span", {}, run.row.finished ? "finished after " : "the trace ends after ", make("b", {}, plural(run.n, "forward"))));
    else {
      parts.push(make("span", {}, "forward ", make("b", {}, `${t}`)));
      if (phase >= 0) parts.push(make("span", { class: `phase phase-${phase % 4}` }, clean(run.phases[phase])));
      if (range) say(`${range[0]}–${range[1] - 1}`, "span");
      say(number(f.committed.length), "committed");
      if (f.remasked.length) parts.push(make("span", { class: "lost" }, `${f.remasked.length} revoked`));
      say(number(f.work, 1), `positions computed${f.probes ? `, ${f.probes} of them probes` : ""}`);
      for (const [name, value] of Object.entries(f.notes)) {
        if (typeof value === "number" && !["start", "end"].includes(name) && !(name === "candidate" && value < 0)) say(number(value, 3), clean(name));
      }
      say(number(f.seconds * 1000, 1), "ms");
    }
    this.now.replaceChildren(...parts);
  }

  /** Choose a position: its story is told below the canvas. */
  choose(position) {
    const { run } = this;
    this.chosen = position;
    if (position === null || position < run.lead) {
      this.chosen = null;
      this.readout.textContent = "Choose a token, or a place in the map, to read its story.";
      if (this.chips.some((c) => c.look)) this.show();
      return;
    }
    const parts = [make("b", {}, `position ${position}`)], last = run.at(position, run.n);
    if (last.kind === "given") parts.push(" was given: ", make("b", {}, `“${last.text}”`));
    for (const e of run.events.get(position) || []) {
      if (e.token === null) parts.push(` · revoked by forward ${e.t}`);
      else parts.push(" · ", make("b", {}, `“${run.text(e.token)}”`), ` by forward ${e.t}, confidence ${percent(e.sure)}`);
    }
    if (!run.events.has(position) && last.kind !== "given") parts.push(" · never filled");
    const asked = [];
    for (let t = 1; t <= run.n; t++) if (run.sure(position, t) !== null) asked.push(`${t}: ${percent(run.sure(position, t))}`);
    if (asked.length) parts.push(` · asked by forward ${asked.slice(0, 12).join(", ")}${asked.length > 12 ? `, … ${asked.length} in all` : ""}`);
    this.readout.replaceChildren(...parts);
    if (this.map) {
      this.map.setAttribute("aria-valuenow", position);
      this.map.setAttribute("aria-valuetext", this.readout.textContent);
    }
    this.show();
  }
}

function tip(event, text) {
  const box = $("tip");
  box.hidden = !event || event.pointerType === "touch";
  if (box.hidden) return;
  box.textContent = text;
  box.style.left = `${Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 6)}px`;
  box.style.top = `${event.clientY + 18 + box.offsetHeight > window.innerHeight ? event.clientY - box.offsetHeight - 10 : event.clientY + 18}px`;
}

function go(t) {
  state.t = Math.min(Math.max(t, 0), state.most);
  const words = `${state.t} / ${state.most}`;
  $("step").value = state.t;
  $("step").setAttribute("aria-valuetext", `forward ${state.t} of ${state.most}`);
  $("count").textContent = words;
  for (const panel of state.panels) panel.show();
  if (!state.timer) $("status").textContent = state.panels.map((p) => p.now.textContent).join("; ");
}

function pause() {
  clearInterval(state.timer);
  state.timer = null;
  $("play").setAttribute("aria-pressed", "false");
  $("play").setAttribute("aria-label", "Play");
}

function play() {
  if (state.timer || !state.most) return pause();
  if (state.t >= state.most) go(0);
  $("play").setAttribute("aria-pressed", "true");
  $("play").setAttribute("aria-label", "Pause");
  state.timer = setInterval(() => {
    go(state.t + 1);
    if (state.t >= state.most) pause();
  }, 1000 / Number($("speed").value));
}

/** Show a row of the traces, at its end. */
function open(row) {
  pause();
  state.row = row;
  const found = data.traces.map((trace) => [trace, trace.rows.find((r) => r.row === row)]);
  state.panels = found.filter(([, r]) => r).map(([trace, r]) => new Panel(trace, r));
  state.most = Math.max(...state.panels.map((p) => p.run.n));
  const lengths = state.panels.map((p) => p.run.n), two = state.panels.length > 1 && lengths[0] !== lengths[1];
  $("scale-field").hidden = !two;
  $("scale").checked = two && Math.min(...lengths) * 4 >= state.most;
  $("step").max = state.most;
  $("panels").className = data.traces.length > 1 ? "two" : "one";
  $("panels").replaceChildren(...found.map(([trace, r], i) => (r ? state.panels[found.slice(0, i).filter(([, x]) => x).length].element
    : make("section", { class: "panel" }, make("h2", {}, clean(trace.policy)), make("p", { class: "facts" }, `${clean(trace.name)} has no row ${row}.`)))));
  prompts(found);
  notices(found);
  go(state.most);
  for (const panel of state.panels) panel.draw();
}

/** What was asked; both prompts where they differ. */
function prompts(found) {
  const texts = found.filter(([, r]) => r).map(([trace, r]) => r.prompt.map((id) => trace.pieces[id] ?? `${id} `).join(""));
  const different = [...new Set(texts)], [, one] = found.find(([, r]) => r);
  const shown = (text) => text.replace(/[^\n\P{C}]/gu, "\ufffd");
  const start = make("span", {}, ` ${said(found.find(([, r]) => r)[0], one).slice(0, 300)}`);
  const summary = make("summary", {}, different.length > 1 ? "Prompts (they differ)" : `Prompt, ${plural(one.prompt.length, "token")}`, start);
  $("prompt").replaceChildren(summary, ...different.map((text) => make("pre", {}, shown(text))));
}

function notices(found) {
  const parts = [];
  for (const [trace, r] of found) {
    if (trace.truncated) parts.push(`${clean(trace.name)}: the last line is cut off, as a run leaves it that was killed; it is left out.`);
    if (r && !r.finished) parts.push(`${clean(trace.name)}: the trace ends before row ${r.row} was finished.`);
    if (r && r.forwards.length && r.confidence === null) parts.push(`${clean(trace.name)} was written by an earlier version: it has no confidences of what was not committed.`);
  }
  $("notices").replaceChildren(...parts.map((text) => make("p", {}, text)));
}

function legend() {
  const scale = (colour) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    canvas.width = 90;
    canvas.height = 1;
    const draw = canvas.getContext("2d");
    for (let x = 0; x < 90; x++) {
      draw.fillStyle = css(colour(x / 89));
      draw.fillRect(x, 0, 1, 1);
    }
    return canvas;
  };
  const chip = (kind, text) => make("span", { class: `t ${kind}` }, text);
  const fresh = chip("fresh", "new");
  fresh.style.setProperty("--tok", css(ORDER(0.5)));
  fresh.style.setProperty("--tok-ink", inkOn(ORDER(0.5)));
  $("legend").replaceChildren(
    make("span", {}, "committed early", scale(ORDER), "late"), make("span", {}, "confidence 0", scale(colours.heat), "1"),
    make("span", {}, "computed in no layer", scale(colours.work), "in all"), make("span", {}, fresh, "by this forward"),
    make("span", {}, chip("mask", "·"), "mask"), make("span", {}, chip("lost", "old"), "revoked by this forward"),
    make("span", {}, "↺ committed again after it was revoked"), make("span", {}, "⏎ newline"), make("span", {}, "∎ end of text"));
}

/** A prompt on one line, without the names of control tokens. */
function said(trace, row) {
  const words = row.prompt.map((i) => trace.pieces[i] ?? `${i} `).filter((piece) => !/^<\|.*\|>$/.test(piece));
  return clean(words.join("").trim().replace(/\s+/g, " "));
}

function rows() {
  const ids = [...new Set(data.traces.flatMap((trace) => trace.rows.map((r) => r.row)))].sort((a, b) => a - b);
  for (const id of ids) {
    const trace = data.traces.find((one) => one.rows.some((r) => r.row === id)), row = trace.rows.find((r) => r.row === id);
    const start = [...said(trace, row)];
    $("row").append(make("option", { value: id }, `${id}: ${start.slice(0, 60).join("")}${start.length > 60 ? "…" : ""}`));
  }
  $("row-field").hidden = ids.length < 2;
  return ids;
}

document.addEventListener("keydown", (event) => {
  const at = event.target, tag = at.tagName;
  if (event.ctrlKey || event.metaKey || event.altKey || tag === "SELECT") return;
  if (event.key === " " && (tag === "BUTTON" || tag === "SUMMARY" || at.type === "checkbox")) return;
  const act = { " ": play, ArrowLeft: () => { pause(); go(state.t - 1); }, ArrowRight: () => { pause(); go(state.t + 1); },
    Home: () => { pause(); go(0); }, End: () => { pause(); go(state.most); } }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
$("play").addEventListener("click", play);
for (const [id, to] of [["first", () => 0], ["back", () => state.t - 1], ["next", () => state.t + 1], ["last", () => state.most]]) {
  $(id).addEventListener("click", () => { pause(); go(to()); });
}
$("step").addEventListener("input", () => { pause(); go(Number($("step").value)); });
$("speed").addEventListener("change", () => { if (state.timer) { pause(); play(); } });
$("row").addEventListener("change", () => open(Number($("row").value)));
$("scale").addEventListener("change", () => state.panels.forEach((panel) => panel.draw()));
new ResizeObserver(() => state.panels.forEach((panel) => panel.draw())).observe($("panels"));
matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => {
  colours = theme();
  legend();
  for (const panel of state.panels) {
    panel.chips.forEach((chip) => { chip.look = null; });
    panel.show();
    panel.draw();
  }
});
document.title = `${data.traces.map((trace) => clean(trace.policy)).join(" | ")} · unmask trace`;
legend();
open(rows()[0]);
