/* What the person does: drags, keys, presets, typed ranks, locks and the budget lock; a gesture ends in one commit. */

const REST_MILLISECONDS = 250;

Object.assign(Board.prototype, {
  choices() {
    const chosen = {};
    for (const row of this.rows.values()) if (!row.dense) chosen[row.layer.name] = { method: row.method, rank: row.rank };
    return chosen;
  },

  setRank(row, rank, multiple = this.multiple) {
    const { top } = row.layer.methods[row.method];
    row.rank = rank.map((r, axis) => allowedRank(top[axis], r, multiple));
    row.dense = savesNothing(row.layer, { method: row.method, rank: row.rank });
    this.dirty.add(row);
  },

  drag(row, axis, value) {
    this.begin();
    this.select(row.layer.name);
    const rank = row.rank.slice();
    rank[axis] = value;
    this.setRank(row, rank);
    this.giveWay(new Set([row]));
    this.schedule();
    this.rest();
  },

  dragGroup(layers, share, slider) {
    this.begin();
    slider.setAttribute("aria-valuetext", `${rounded(100 * share)} % of break-even`);
    const moved = new Set();
    for (const layer of layers) {
      const row = this.rows.get(layer.name);
      if (this.locked.has(layer.name) || !canSave(layer, row.method)) continue;
      this.setRank(row, rankAt(usefulRank(layer, row.method), share));
      moved.add(row);
    }
    this.giveWay(moved);
    this.schedule();
    this.rest();
  },

  /* A gesture is one drag or one run of key presses: one step of undo. A drag ends where the thumb is let go, however
     long it rested before; keys end when they rest. */
  press(event) {
    if (event.button !== 0) return;                              // after a menu nobody says that it was let go
    this.pressed = true;
    this.newGesture();
    const ends = ["pointerup", "pointercancel", "blur"];
    const release = () => {
      for (const end of ends) window.removeEventListener(end, release);
      this.pressed = false;
      setTimeout(() => this.settle());                          // after the last input event
    };
    for (const end of ends) window.addEventListener(end, release);
  },

  newGesture() {
    this.gesture += 1;
    this.start = new Map([...this.rows.values()].map(row => [row, row.rank.slice()]));
  },

  begin() {
    if (this.dragging) return;
    this.dragging = true;
    if (!this.pressed) this.newGesture();
  },

  rest() {
    clearTimeout(this.timer);
    if (!this.pressed) this.timer = setTimeout(() => this.settle(), REST_MILLISECONDS);
  },

  settle() {
    this.dragging = false;
    this.commit();
  },

  pending() {
    clearTimeout(this.timer);
    const choices = this.choices(), now = JSON.stringify(choices);
    if (now === this.sent) return null;
    const before = this.sent ? JSON.parse(this.sent) : null;  // another tab may have changed other layers since
    this.sent = now;
    this.rev = Math.max(this.rev, this.data.rev) + 1;
    this.measuring = true;
    this.doing = "";
    this.plain = null;
    return { rev: this.rev, gesture: this.gesture, choices, before };
  },

  commit() {
    const plan = this.pending();
    if (plan) { this.say("commit", plan); this.drawDifference(); }
    else this.post();                                           // what was held back while a thumb was held
    this.draw(true);
  },

  preset(value) {
    if (!value) return;
    this.newGesture();
    const [kind, number] = value.split(":");
    for (const row of this.rows.values()) {
      if (this.locked.has(row.layer.name)) continue;
      if (kind === "dense") { this.adopt(row, null); continue; }
      if (!canSave(row.layer, row.method)) continue;
      if (kind === "share") this.setRank(row, rankAt(usefulRank(row.layer, row.method), Number(number)));
      else {
        const { top } = row.layer.methods[row.method], tails = tailsOf(row.layer, row.method);
        this.setRank(row, tails.map((tail, axis) => energyRank(tail, top[axis], Number(number))));
      }
    }
    this.commit();
  },

  enter(row) {
    const given = row.entry.value.split(/[^0-9]+/).filter(Boolean).map(Number);
    const top = row.layer.methods[row.method].top;
    if (row.entry.value.trim().toLowerCase() === "dense") { this.adopt(row, null); this.commit(); return; }
    if (given.length !== top.length || given.some((r, i) => r < 1 || r > top[i])) {
      this.status.textContent = `${row.layer.name}: type ${top.length === 1 ? `a rank from 1 to ${top[0]}`
        : `two ranks, up to ${top.join(" and ")}`}, or "dense"; got "${row.entry.value}".`;
      this.dirty.add(row);
      this.draw(true);
      return;
    }
    this.newGesture();
    this.setRank(row, given, 1);
    this.select(row.layer.name);
    this.commit();
  },

  setMethod(name) {
    const row = this.rows.get(this.selected);
    this.newGesture();
    if (name === "dense") this.adopt(row, null);
    else {
      const { layer } = row, before = row.dense ? null : cost(layer, row, "multiplies");
      row.method = name;
      if (!canSave(layer, name)) this.setRank(row, layer.methods[name].top);
      else if (before === null) this.setRank(row, rankAt(usefulRank(layer, name), 0.5));
      else this.setRank(row, rankWithin(layer, name, before));   // the same price, as nearly as ranks allow
    }
    this.commit();
  },

  toggleLock(row) {
    const on = !this.locked.has(row.layer.name);
    if (on) this.locked.add(row.layer.name); else this.locked.delete(row.layer.name);
    this.locks = [...this.locked].sort().join();
    row.lock.setAttribute("aria-pressed", String(on));
    this.act("lock", { locked: [...this.locked] });
  },

  setHold(quantity) {
    this.hold = quantity ? { quantity, total: totals(this.model, this.choices())[quantity] } : null;
    this.holdSelect.value = quantity || "";
    this.schedule();
  },

  /* Budget lock: scale the ranks of the other unlocked layers by one factor, the largest that keeps the total. */
  giveWay(moved) {
    if (!this.hold) return;
    const { quantity, total } = this.hold, others = [], sharing = [];
    let most = total - this.model.rest[quantity];
    for (const row of this.rows.values()) {
      const { layer, method } = row;
      if (moved.has(row) || this.locked.has(layer.name) || !canSave(layer, method)) {
        most -= cost(layer, row.dense ? null : row, quantity);
        continue;
      }
      const useful = usefulRank(layer, method);
      others.push(row);
      sharing.push({ layer, method, full: this.start.get(row).map((r, axis) => Math.min(r, useful[axis] + 1)) });
    }
    ranksWithin(sharing, most, quantity, this.multiple).forEach((rank, i) => {
      if (rank.some((r, axis) => r !== others[i].rank[axis])) this.setRank(others[i], rank, 1);
    });
  },

  select(name) {
    if (!this.rows.has(name)) return;
    if (this.selected === name && this.detailOf === name + this.rows.get(name).method) return;
    const old = this.rows.get(this.selected);
    if (old) this.dirty.add(old);
    this.selected = name;
    this.dirty.add(this.rows.get(name));
    this.schedule();
  },

  applyFilter() {
    const wanted = this.filter.value.toLowerCase().trim();
    for (const { details, layers } of this.groups) {
      let shown = 0;
      for (const layer of layers) {
        const match = !wanted || layer.name.toLowerCase().includes(wanted) || layer.type.toLowerCase().includes(wanted);
        this.rows.get(layer.name).element.hidden = !match;
        shown += match;
      }
      details.hidden = shown === 0;
    }
  },
});
