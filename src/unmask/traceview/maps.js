// The pictures under the canvas: phases, commits, work, and two maps of position by forward. All share one time axis.

/** Colours of the theme, by the names of page.css. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    of,
    heat: ramp(of("heat").split(",")),
    work: ramp(of("work").split(",")),
    void: parse(of("void")), full: parse(of("full")), lost: parse(of("lost")),
    phases: [0, 1, 2, 3].map((i) => of(`phase-${i}`)),
  };
}

function parse(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.trim().slice(i, i + 2), 16));
}

/** From 0..1 to [r, g, b] between some colours. */
function ramp(stops) {
  const parsed = stops.map(parse);
  return (x) => {
    const at = Math.min(Math.max(x, 0), 1) * (parsed.length - 1), low = Math.min(Math.floor(at), parsed.length - 2);
    return parsed[low].map((c, i) => Math.round(c + (parsed[low + 1][i] - c) * (at - low)));
  };
}

// As in the SVG pictures: from early to late, lighter all the way.
const ORDER = ramp(["#4454a0", "#367aa8", "#289696", "#3ab076", "#82cc50", "#ceda3c", "#fce85a"]);
const orderOf = (t, n) => ORDER((t - 1) / Math.max(n - 1, 1));
const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

/** Black or white, whichever has the larger contrast (WCAG 2.1); that is 4.58 at the least. */
function inkOn(colour) {
  const [r, g, b] = colour.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

/** A canvas element at the screen's resolution, cleared; null while it has no width. */
function prepare(canvas, height) {
  const width = canvas.clientWidth, dots = window.devicePixelRatio || 1;
  if (!width) return null;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * dots);
  canvas.height = Math.round(height * dots);
  const draw = canvas.getContext("2d");
  draw.scale(dots, dots);
  return { draw, width, height };
}

function drawPhases(canvas, run, columns, colours) {
  const at = prepare(canvas, 18);
  if (!at) return;
  const cell = at.width / columns;
  at.draw.font = "600 11px system-ui, sans-serif";
  at.draw.textBaseline = "middle";
  for (let t = 1, end; t <= run.n; t = end) {
    const phase = run.phase(t);
    for (end = t + 1; end <= run.n && run.phase(end) === phase; end++);
    if (phase < 0) continue;
    const width = (end - t) * cell, name = clean(run.phases[phase]);
    at.draw.fillStyle = colours.phases[phase % 4];
    at.draw.fillRect((t - 1) * cell, 0, Math.max(width - 1, 0.5), 18);
    at.draw.fillStyle = colours.of("phase-ink");
    if (at.draw.measureText(name).width + 8 < width) at.draw.fillText(name, (t - 1) * cell + 5, 9.5);
  }
}

/** Bars up, and in red down, of values per forward. */
function drawBars(canvas, up, down, columns, colour, colours) {
  const height = 46, at = prepare(canvas, height);
  if (!at) return;
  const cell = at.width / columns, gap = cell > 5 ? 1 : 0;
  const high = Math.max(...up, 0), low = Math.max(...down, 0), unit = (height - 1) / Math.max(high + low, 1e-9);
  const base = 1 + high * unit;
  up.forEach((value, i) => {
    at.draw.fillStyle = colour;
    if (value) at.draw.fillRect(i * cell, base - Math.max(value * unit, 1), Math.max(cell - gap, 0.6), Math.max(value * unit, 1));
    at.draw.fillStyle = colours.of("lost");
    if (down[i]) at.draw.fillRect(i * cell, base, Math.max(cell - gap, 0.6), Math.max(down[i] * unit, 1));
  });
  at.draw.fillStyle = colours.of("line");
  at.draw.fillRect(0, Math.min(base, height - 1), at.width, 1);
}

/** An image averaged to fewer pixels, in each direction for itself: where one has enough, it stays sharp. */
function squeezed(image, width, height) {
  if (image.width === width && image.height === height) return image;
  const made = document.createElement("canvas");
  made.width = width;
  made.height = height;
  const draw = made.getContext("2d");
  draw.imageSmoothingQuality = "high";
  draw.drawImage(image, 0, 0, image.width, image.height, 0, 0, width, height);
  return made;
}

/** A map of forwards from left to right and positions [low, high) from top to bottom; `colour(position, t)` is [r, g, b]. */
function drawMap(canvas, run, columns, low, high, most, colour) {
  const dots = window.devicePixelRatio || 1, rows = high - low, height = Math.max(24, Math.round(Math.min(most, rows * 14)));
  const at = prepare(canvas, height);
  if (!at || !run.n) return null;
  const image = document.createElement("canvas");
  image.width = run.n;
  image.height = rows;
  const pixels = new ImageData(run.n, rows);
  for (let p = low, i = 0; p < high; p++) {
    for (let t = 1; t <= run.n; t++, i += 4) {
      [pixels.data[i], pixels.data[i + 1], pixels.data[i + 2]] = colour(p, t);
      pixels.data[i + 3] = 255;
    }
  }
  image.getContext("2d").putImageData(pixels, 0, 0);
  const cell = at.width / columns, tall = height / rows;
  const fitted = squeezed(image, Math.min(run.n, Math.ceil(cell * run.n * dots)), Math.min(rows, Math.round(height * dots)));
  at.draw.imageSmoothingEnabled = false;
  at.draw.drawImage(fitted, 0, 0, fitted.width, fitted.height, 0, 0, cell * run.n, height);
  at.draw.globalAlpha = 0.55;
  at.draw.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--card");
  for (let p = 1; p < rows && tall >= 6; p++) at.draw.fillRect(0, p * tall - 0.5, cell * run.n, 1);
  for (let t = 1; t < run.n && cell >= 6; t++) at.draw.fillRect(t * cell - 0.5, 0, 1, height);
  at.draw.globalAlpha = 1;
  return { ...at, cell, tall, y: (p) => Math.min(Math.max((p - low) * tall, 0), height) };
}

/** Confidences; where a token was written, where one was taken back; phases and their spans around them. */
function drawConfidence(canvas, run, columns, colours) {
  const states = stateMap(run);
  const colour = (p, t) => {
    const state = states[(t - 1) * run.span + p - run.lead], sure = run.sure(p, t);
    if (state === LOST) return colours.lost;
    if (sure !== null) return colours.heat(sure);
    return state === FILLED || state === WRITTEN ? colours.full : colours.void;
  };
  const at = drawMap(canvas, run, columns, run.lead, run.used, 420, colour);
  if (!at) return;
  const { draw, cell, tall } = at;
  for (let t = 1; t <= run.n && cell >= 4; t++) {
    for (const [p] of run.forwards[t - 1].committed) {
      if (p >= run.used || tall < 3) continue;
      const size = Math.min(tall, cell, 9) / 2.6, x = (t - 0.5) * cell, y = at.y(p) + tall / 2;
      draw.beginPath();
      draw.arc(x, y, Math.max(size, 1), 0, 7);
      draw.fillStyle = css(orderOf(t, run.n));
      draw.fill();
      draw.lineWidth = 1;
      draw.strokeStyle = colours.of("card");
      draw.stroke();
    }
  }
  for (let t = 1, end; t <= run.n; t = end) {
    const key = (s) => `${run.range(s)} ${run.phase(s)}`;
    for (end = t + 1; end <= run.n && key(end) === key(t); end++);
    const range = run.range(t), phase = run.phase(t);
    if (!range) continue;
    draw.strokeStyle = colours.phases[Math.max(phase, 0) % 4];
    draw.lineWidth = 2;
    const top = at.y(range[0]) + 1;
    const tallness = Math.max(at.y(range[1]) - 1 - top, 1), wide = (end - t) * cell;
    draw.fillStyle = draw.strokeStyle;
    if (wide >= 8) draw.strokeRect((t - 1) * cell + 1, top, wide - 2, tallness);
    else for (const y of [top, top + tallness]) draw.fillRect((t - 1) * cell, y - 1, wide, 2);
    for (let s = t; s < end; s++) {
      const candidate = run.forwards[s - 1].notes.candidate;
      if (typeof candidate !== "number" || candidate < 0) continue;
      draw.fillRect((s - 1) * cell, at.y(candidate) - 1.5, cell, 3);
    }
  }
}

const MASKED = 0, WRITTEN = 1, FILLED = 2, LOST = 3;

/** Per forward and position of the response: masked, written or taken back by this forward, filled before. */
function stateMap(run) {
  const map = new Uint8Array(run.n * run.span);
  for (let p = run.lead; p < run.length; p++) {
    const fill = (from, to, state) => { for (let t = from; t <= to; t++) map[(t - 1) * run.span + p - run.lead] = state; };
    if (run.given.has(p)) fill(1, run.n, FILLED);
    for (const e of run.events.get(p) || []) {
      fill(e.t, run.n, e.token === null ? MASKED : FILLED);
      fill(e.t, e.t, e.token === null ? LOST : WRITTEN);
    }
  }
  return map;
}

/** Share of the layers that computed each position, the prompt's too; a line where the response begins. */
function drawComputed(canvas, run, columns, colours) {
  const at = drawMap(canvas, run, columns, 0, run.length, 220, (p, t) => colours.work(run.work(p, t)));
  if (!at || !run.lead) return;
  at.draw.fillStyle = colours.of("ink");
  at.draw.fillRect(0, at.y(run.lead) - 0.75, at.cell * run.n, 1.5);
}
