"use strict";
// Traces, unpacked and replayed. Positions count from the start of the prompt; time t is "after t forwards", so that
// forward t is the one that led from t - 1 to t.

const NOT_ASKED = 255;

/** Bytes of base64, or null. */
function bytes(text) {
  return text === null ? null : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** Fit to be shown: what would not be seen, or would move what stands around it, as a sign of its own. */
function clean(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd") || "\u00a0";
}

class Run {
  /** One row of one trace. */
  constructor(trace, row) {
    Object.assign(this, { trace, row, forwards: row.forwards, n: row.forwards.length, lead: row.prompt.length, length: row.length });
    this.span = row.length - this.lead;
    this.confidence = bytes(row.confidence);
    this.computed = bytes(row.computed);
    this.given = new Map(row.fixed);
    this.events = new Map();
    this.phases = [...new Set(row.forwards.flatMap((f) => Object.keys(f.notes).filter((k) => typeof f.notes[k] === "boolean")))];
    row.forwards.forEach((f, i) => {
      for (const [at, token, sure] of f.committed) this.note(at, { t: i + 1, token, sure });
      for (const at of f.remasked) this.note(at, { t: i + 1, token: null });
    });
    this.tokens = this.count();
    this.used = this.reach();
  }

  note(at, event) {
    if (!this.events.has(at)) this.events.set(at, []);
    this.events.get(at).push(event);
  }

  text(id) {
    if (this.trace.eos.includes(id)) return "∎";
    const piece = this.trace.pieces[id];
    return piece === undefined ? `${id} ` : clean(piece);
  }

  /** Tokens of the response after t forwards: some policies change that. */
  size(t) {
    return (t < 1 ? this.row.begin : this.forwards[Math.min(t, this.n) - 1].size) ?? this.span;
  }

  /** What stands at a position after t forwards. `lost`: the text that forward t took back; `losses` up to then. */
  at(position, t) {
    if (position - this.lead >= this.size(t)) return { kind: "gone", text: "", losses: 0 };
    if (this.given.has(position)) return { kind: "given", text: this.text(this.given.get(position)), losses: 0 };
    let now = { kind: "mask", losses: 0 };
    for (const e of this.events.get(position) || []) {
      if (e.t > t) break;
      now = e.token === null
        ? { kind: "mask", losses: now.losses + 1, lost: e.t === t && now.text !== undefined ? now.text : undefined }
        : { kind: "token", id: e.token, text: this.text(e.token), t: e.t, sure: e.sure, losses: now.losses };
    }
    return now;
  }

  /** Confidence 0..1 that forward t answered with at a position; null where it was not asked. */
  sure(position, t) {
    if (!this.confidence || t < 1 || t > this.n) return null;
    const value = this.confidence[(t - 1) * this.span + position - this.lead];
    return value === NOT_ASKED || value === undefined ? null : value / 254;
  }

  /** Share 0..1 of the layers that computed a position in forward t; null: the trace does not tell. */
  work(position, t) {
    return this.computed ? this.computed[(t - 1) * this.length + position] / 254 : null;
  }

  /** Forward t, or null before the first and after the last. */
  forward(t) {
    return t >= 1 && t <= this.n ? this.forwards[t - 1] : null;
  }

  /** The phase of forward t: its place in `phases`, -1 for none. */
  phase(t) {
    const f = this.forward(t);
    return f ? this.phases.findIndex((name) => f.notes[name] === true) : -1;
  }

  /** [start, end) of forward t, or null. */
  range(t) {
    const f = this.forward(t);
    return f && typeof f.notes.start === "number" && typeof f.notes.end === "number" ? [f.notes.start, f.notes.end] : null;
  }

  /** Tokens of the response before its first end of text, given ones left out. */
  count() {
    let tokens = 0;
    for (let p = this.lead; p < this.length; p++) {
      const now = this.at(p, this.n);
      if (now.kind === "token" && this.trace.eos.includes(now.id)) break;
      tokens += now.kind === "token";
    }
    return tokens;
  }

  /** One behind the last position that was ever filled or given; the whole response where that leaves little out. */
  reach() {
    const last = [...this.given.keys(), ...this.events.keys()].reduce((most, at) => Math.max(most, at), this.lead);
    return this.length - last - 1 <= 8 ? this.length : last + 1;
  }
}
