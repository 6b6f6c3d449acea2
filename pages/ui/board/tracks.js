/* A track: where ranks stand on it, linear or by their logarithm, and how a mouse, a pen or a finger moves its thumb. The
   native range input under it keeps value, keys and name; only pointers are followed here, so that a scale may be a
   logarithm, a finger that scrolls sets nothing, and a window that changes size ends a drag where it was. */

const LOG_FROM = 512;                                            // ranks, from where a track is logarithmic by itself
const GRAB_PIXELS = 8, DECIDE_PIXELS = 8, FINE = 1 / 8;
const AFTER_TOUCH_MILLISECONDS = 400;                            // in which a browser may still send a click

/* Where a rank stands on its track, in percent; the thumb is 10 px wide and the track leaves 5 px at both ends. */
function position(rank, top, log = false) {
  if (top <= 1) return 100;
  return log ? 100 * Math.log(Math.max(1, rank)) / Math.log(top) : 100 * (rank - 1) / (top - 1);
}

function rankAtShare(share, top, log) {
  const inside = Math.min(1, Math.max(0, share));
  return Math.min(top, Math.max(1, rounded(log ? Math.exp(inside * Math.log(top)) : 1 + inside * (top - 1))));
}

/* The track is the spectrum: height follows the log of the energy that is still missing. */
function silhouette(tail, top, log = false) {
  const least = Math.min(...tail.lost.filter((lost, i) => lost > 1e-9 && tail.ranks[i] < top), 0.9);
  const height = lost => Math.min(1, Math.log(Math.max(lost, 1e-12)) / Math.log(least));
  const points = tail.ranks.filter(r => r >= 1).map((r, i) => {
    const lost = tail.lost[i + (tail.ranks[0] === 0 ? 1 : 0)];
    return `${position(r, top, log).toFixed(2)}% ${(100 * (0.08 + 0.84 * height(lost))).toFixed(1)}%`;
  });
  return `polygon(0% 100%, ${points.join(", ")}, 100% 100%)`;
}

/* The next rank that a layer can have, up or down from one that it may not have. */
function nextRank(top, rank, up, multiple = 1) {
  if (up) return Math.min(top, (Math.floor(rank / multiple) + 1) * multiple);
  return Math.max(Math.min(multiple, top), (Math.ceil(rank / multiple) - 1) * multiple);
}

/* The ranks where the spectra of a layer bend; null where these save nothing. */
function suggestedRank(layer, method) {
  const { tails } = layer.methods[method];
  if (!tails) return null;
  const rank = tails.map(tail => tail.suggested);
  return savesNothing(layer, { method, rank }) ? null : rank;
}

Object.assign(Board.prototype, {
  /* The last rank of a track: the maximum, or one above break-even, where the layer is dense. */
  topOf(row, axis) {
    const top = row.layer.methods[row.method].top[axis];
    if (this.scale !== "zoom" || !canSave(row.layer, row.method, row.free)) return top;
    return Math.min(top, usefulRank(row.layer, row.method, row.free)[axis] + 1);
  },

  isLog(top) { return this.scale === "log" || (this.scale !== "linear" && top >= LOG_FROM); },

  /* track: { input, rail, top, log, shown() }. */
  follow(track) {
    const { input } = track;
    input.addEventListener("pointerdown", event => this.takeHold(event, track));
    input.addEventListener("input", event => {
      if ((this.touching || this.deaf) && !track.ours) {         // a browser's own idea of where a finger is
        input.value = track.shown();
        event.stopImmediatePropagation();
      }
    });
    input.addEventListener("keydown", event => {
      const up = ["ArrowRight", "ArrowUp", "PageUp"].includes(event.key);
      if (!track.axis || this.multiple === 1 || !(up || ["ArrowLeft", "ArrowDown", "PageDown"].includes(event.key))) return;
      event.preventDefault();
      const page = event.key.startsWith("Page") ? Math.max(0, rounded(track.top / 10) - this.multiple) : 0;
      this.put(track, nextRank(track.top, Number(input.value) + (up ? page : -page), up, this.multiple));
    });
  },

  put(track, value) {
    if (Number(track.input.value) === value) return;
    track.ours = true;
    track.input.value = value;
    track.input.dispatchEvent(new Event("input", { bubbles: true }));
    track.ours = false;
  },

  takeHold(event, track) {
    const box = () => track.rail.getBoundingClientRect();
    const at = () => { const { left, width } = box(); return left + width * position(track.shown(), track.top, track.log) / 100; };
    const move = x => {
      const { left, width } = box();
      if (width > 0) this.put(track, rankAtShare((x - left) / width, track.top, track.log));
    };
    if (event.pointerType === "touch") { this.touch(event, track, at, move); return; }
    if (event.button !== 0) return;
    event.preventDefault();                                      // what follows is this file's, not the browser's
    track.input.focus({ preventScroll: true });
    let last = event.clientX, x = Math.abs(at() - last) <= GRAB_PIXELS ? at() : last;
    this.press(event, later => {
      x += (later.clientX - last) * (later.shiftKey ? FINE : 1);
      last = later.clientX;
      move(x);
    }, track);
    move(x);
  },

  /* A finger takes hold of a thumb only by moving sideways; it then moves the thumb as far as it moves itself. */
  touch(event, track, at, move) {
    const { clientX, clientY, pointerId } = event, from = at();
    let held = false;
    this.touching = true;
    const step = later => {
      if (later.pointerId !== pointerId) return;
      const [x, y] = [Math.abs(later.clientX - clientX), Math.abs(later.clientY - clientY)];
      if (!held && Math.max(x, y) < DECIDE_PIXELS) return;
      if (!held && x < 1.5 * y) { end(); return; }
      if (!held) { held = true; this.press({ button: 0 }, null, track); }
      if (this.pressed) move(from + later.clientX - clientX);
    };
    const end = ended => {
      window.removeEventListener("pointermove", step);
      for (const name of ["pointerup", "pointercancel"]) window.removeEventListener(name, end);
      if (!held && track.row && ended && ended.type === "pointerup") {  // a tap: the layer, large, where there is a sheet for it
        this.select(track.row.layer.name);
        setTimeout(() => this.openSheet());                      // after a sheet that it closes
      }
      setTimeout(() => { this.touching = false; }, AFTER_TOUCH_MILLISECONDS);
    };
    window.addEventListener("pointermove", step);
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, end);
  },

  /* What a thumb that is held stands for, above it. */
  drawReadout(now, predicted) {
    const { held } = this, row = held && held.row;
    if (!row || !this.pressed) { if (this.readout) this.readout.remove(); return; }
    const { layer } = row, choice = row.dense ? null : { method: row.method, rank: row.rank };
    const e = errorSquared(layer, choice), { dense } = this.model.metric;
    const facts = [row.dense ? "dense" : `rank ${row.rank.join(", ")}`, `${words.percent(1 - e, 1)} energy`,
      words.quantity("bytes", cost(layer, choice, "bytes"))];
    const answer = this.answered(this.choices()), value = answer ? answer.score.value : predicted.value;
    const against_ = answer ? answer.score.dense : dense;
    if (value !== null && against_ !== null)
      facts.push(`${words.signed(this.model, value - against_)}${this.model.metric.share ? " points" : ""}`);
    this.readout = this.readout || node("div", { class: "rb-readout", "aria-hidden": "true" });
    this.readout.textContent = facts.join(" · ");
    const box = held.rail.parentNode;
    if (this.readout.parentNode !== box) box.append(this.readout);
    const place = position(held.shown(), held.top, held.log);
    this.readout.style.left = `${place}%`;
    this.readout.style.transform = `translateX(-${place}%)`;
  },
});
