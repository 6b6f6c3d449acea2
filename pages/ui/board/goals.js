/* Goals: the device a plan must fit into, the number format it is stored in, the worst score that is allowed. Flash is a
   closed form (closed_forms.js); the peak of RAM is the server's answer. */

const NO_GOALS = { device: null, number: "as it is", floor: null, own: "" };
const MARKS = { kept: "✓", broken: "⚠", open: "?", unknown: "…" };

Object.assign(Board.prototype, {
  /* From the board's data and from the feed: goals as they stand, and the peak of the plan that Python knows. */
  hearGoals({ goals, peak, rev }) {
    if (goals !== undefined) this.goals = goals;
    if (peak !== undefined && rev === this.rev) { this.peak = peak; this.peakRev = rev; }
  },

  buildGoal(kind) {
    this.goals = NO_GOALS;
    const line = node("p", { class: "rb-goal", "data-testid": `goal-${kind}`, hidden: true });
    (this.goalLines || (this.goalLines = {}))[kind] = line;
    return line;
  },

  buildGoals(kind) {
    const kinds = { accuracy: ["accuracy"], bytes: ["flash", "ram"], multiplies: ["multiplies"] }[kind];
    return kinds.map(one => this.buildGoal(one));
  },

  showGoal(kind, verdict, text) {
    const line = this.goalLines[kind], said = text && (verdict ? `${MARKS[verdict]} ${text}` : text);
    if (line.textContent !== said) Object.assign(line, { textContent: said, hidden: !text });
    if (line.dataset.kept === verdict) return;
    line.dataset.kept = verdict;
    line.closest(".rb-card").classList.toggle("rb-broken",
      [...line.parentNode.querySelectorAll(".rb-goal")].some(one => one.dataset.kept === "broken"));
  },

  drawGoals(choices, now) {
    const { goals, model } = this, { device } = goals;
    const any = Boolean(device) || goals.floor !== null;
    this.showGoal("multiplies", "", any ? words.timesFewer(now.multiplies, model.dense.multiplies, "multiplies") : "");
    if (!device) {
      for (const kind of ["flash", "ram"]) this.showGoal(kind, "", "");
      return;
    }
    const need = flashBytes(model, choices, goals.number);
    this.showGoal("flash", judged(need, need, device.flash_bytes, false),
      `${words.ofDevice(need, device.flash_bytes)} flash${goals.in}`);
    this.drawRam(device);
  },

  drawRam({ ram_bytes: most }) {
    const peak = this.peakRev === this.rev ? this.peak : null;
    if (!most) this.showGoal("ram", "", "RAM of the device is not given");
    else if (this.dragging) this.showGoal("ram", "unknown", "RAM: known when you let go");
    else if (!peak) this.showGoal("ram", "unknown", "RAM: known after the accuracy");
    else if (peak.error) this.showGoal("ram", "unknown", `RAM is not known: ${peak.error}`);
    else {
      const need = peak.bytes[this.goals.number];
      this.showGoal("ram", judged(need, need, most, false), `RAM ${words.ofDevice(need, most)}`);
    }
  },

  /* low, high: of a prediction; of a figure that was measured both are it. */
  drawFloor(value, low, high) {
    const { floor, how } = this.goals, { metric } = this.model;
    if (floor === null || value === null || low === null) {
      this.showGoal("accuracy", "", floor === null ? "" : `${words.floor(this.model, floor)} ${how}`);
      return;
    }
    const text = low === high ? words.ofFloor(this.model, value, floor) : `${words.bare(words.range(this.model, { low, high }))} of ${words.floor(this.model, floor)}`;
    this.showGoal("accuracy", judged(low, high, floor, metric.higher), `${text} ${how}`);
  },

  /* On the bar of the total: where the device, or the worst score that is allowed, stands. Drawn by Plotly itself. */
  goalShapes(kind) {
    const at = this.goalAt(kind);
    if (at === null || !(at > 0)) return [];
    return [{ type: "line", xref: "x", yref: "y", x0: at, x1: at, y0: -0.5, y1: 0.5, line: { width: 3, color: this.colours.limit } }];
  },

  goalAt(kind) {
    const { goals, model } = this;
    if (!goals || kind === "multiplies") return null;
    if (kind === "accuracy") {
      const { dense, higher } = model.metric;
      if (goals.floor === null || !dense) return null;
      return higher ? goals.floor / dense : dense / goals.floor;
    }
    if (!goals.device || !model.dense.bytes) return null;
    const { size, dense } = model.formats[goals.number];              // bytes of a plan that just fits
    const each = model.layers.length ? (size || model.layers[0].itemsize) / model.layers[0].itemsize : 1;
    return (model.dense.bytes - (dense - goals.device.flash_bytes) / each) / model.dense.bytes;
  },

  /* For the line that stays in sight on a phone. */
  isBroken(kind) { return this[kind + "Card"].figure.closest(".rb-card").classList.contains("rb-broken") ? "⚠ " : ""; },

  /* For the line of the status: what is broken, once a figure is final. */
  brokenGoals() {
    const broken = Object.entries(this.goalLines).filter(([, line]) => line.dataset.kept === "broken" && !line.hidden);
    return broken.length ? ` ${broken.map(([, line]) => line.textContent).join("; ")}.` : "";
  },
});
