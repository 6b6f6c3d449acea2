/* What the person does: drags, keys, presets, typed ranks, locks and the budget lock; a gesture ends in one commit. */

const REST_MILLISECONDS = 250;

Object.assign(Board.prototype, {
  choices() {
    const chosen = {};
    for (const row of this.rows.values()) {
      if (row.dense) continue;
      const choice = chosen[row.layer.name] = { method: row.method, rank: row.rank };
      if (row.free && row.layer.methods[row.method].free) choice.free = true;
    }
    return chosen;
  },

  setRank(row, rank, multiple = this.multiple) {
    const { top } = row.layer.methods[row.method];
    row.rank = rank.map((r, axis) => allowedRank(top[axis], r, multiple));
    row.dense = savesNothing(row.layer, row);
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
    this.wonder();
  },

  dragGroup(layers, share) {
    this.begin();
    const moved = new Set();
    for (const layer of layers) {
      const row = this.rows.get(layer.name);
      if (this.locked.has(layer.name) || !canSave(layer, row.method, row.free)) continue;
      this.setRank(row, rankAt(usefulRank(layer, row.method, row.free), share));
      moved.add(row);
    }
    this.giveWay(moved);
    this.schedule();
    this.rest();
    this.wonder();
  },

  /* A gesture is one drag or one run of key presses: one step of undo. A drag ends where the thumb is let go, however
     long it rested before; keys end when they rest. */
  press(event, move = null, track = null) {
    if (event.button !== 0) return;                              // after a menu nobody says that it was let go
    this.pressed = true;
    this.held = track;
    this.newGesture();
    const ends = ["pointerup", "pointercancel", "blur", "resize"];
    const release = ended => {
      for (const end of ends) window.removeEventListener(end, release);
      if (move) window.removeEventListener("pointermove", move);
      this.pressed = false;
      this.held = null;
      this.stopAsking();
      if (ended.type === "resize") {                             // the same place is another rank now: nothing more moves it
        this.deaf = true;
        for (const end of ["pointerup", "pointercancel", "blur"]) window.addEventListener(end, () => { this.deaf = false; }, { once: true });
      }
      setTimeout(() => this.settle());                          // after the last input event
    };
    for (const end of ends) window.addEventListener(end, release);
    if (move) window.addEventListener("pointermove", move);
  },

  /* To the rank that the layer's spectrum suggests. */
  suggest(row) {
    const suggested = suggestedRank(row.layer, row.method);
    if (!suggested) return;
    this.newGesture();
    this.setRank(row, suggested);
    this.commit();
  },

  newGesture() {
    this.gesture += 1;
    this.answers = new Map();
    this.tooSlow = "";
    this.by = "hand";
    this.gave = new Set();
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
    if (!this.pressed) this.dragging = false;                   // keys rest by being told: what Python answers is the plan
    const choices = this.choices(), now = JSON.stringify(choices);
    if (now === this.sent) return null;
    const before = this.sent ? JSON.parse(this.sent) : null;  // another tab may have changed other layers since
    this.sent = now;
    this.rev = Math.max(this.rev, this.data.rev) + 1;
    this.measuring = true;
    this.doing = "";
    this.plain = null;
    return { rev: this.rev, gesture: this.gesture, choices, before, ...this.doneBy(before || {}, choices) };
  },

  commit() {
    const plan = this.pending();
    if (plan) { this.say("commit", plan); this.drawDifference(); }
    else {
      this.post();                                              // what was held back while a thumb was held
      if (this.data.rev > this.rev) this.update(this.data);     // and what came meanwhile
    }
    this.draw(true);
  },

  preset(value) {
    if (!value) return;
    this.newGesture();
    this.by = "rule";
    const [kind, number] = value.split(":"), before = this.choices();
    for (const row of this.rows.values()) {
      if (this.locked.has(row.layer.name)) continue;
      if (kind === "dense") { this.adopt(row, null); continue; }
      if (!canSave(row.layer, row.method, row.free)) continue;
      if (kind === "suggested") {
        const rank = suggestedRank(row.layer, row.method);
        if (rank) this.setRank(row, rank); else this.adopt(row, null);
      } else if (kind === "share") this.setRank(row, rankAt(usefulRank(row.layer, row.method, row.free), Number(number)));
      else {
        const { top } = row.layer.methods[row.method], tails = tailsOf(row.layer, row.method);
        this.setRank(row, tails.map((tail, axis) => energyRank(tail, top[axis], Number(number))));
      }
    }
    this.commit();
    const text = kind === "dense" ? "All dense" : [...this.presetSelect.options].find(option => option.value === value).text;
    this.speak(`${text}: ${this.changeText(before, this.choices()) || "nothing changes."}`);
  },

  enter(row) {
    row.refusal.hidden = true;
    for (const name of ["aria-invalid", "aria-describedby"]) row.entry.removeAttribute(name);
    const given = row.entry.value.split(/[^0-9]+/).filter(Boolean).map(Number);
    const top = row.layer.methods[row.method].top;
    if (row.entry.value.trim().toLowerCase() === "dense") { this.adopt(row, null); this.commit(); return; }
    if (given.length !== top.length || given.some((r, i) => r < 1 || r > top[i])) {
      const refusal = `${row.layer.name}: type ${top.length === 1 ? `a rank from 1 to ${top[0]}`
        : `two ranks, up to ${top.join(" and ")}`}, or "dense"; got "${row.entry.value}".`;
      this.status.textContent = row.refusal.textContent = refusal;
      row.refusal.hidden = false;
      row.entry.setAttribute("aria-invalid", "true");
      row.entry.setAttribute("aria-describedby", row.refusal.id);
      this.dirty.add(row);
      this.draw(true);
      return;
    }
    this.newGesture();
    this.setRank(row, given, 1);
    this.select(row.layer.name);
    this.commit();
  },

  setMethod(name, rows = [this.rows.get(this.selected)]) {
    const free = rows.filter(row => rows.length === 1 || !this.locked.has(row.layer.name));
    this.newGesture();
    for (const row of free) {
      const { layer } = row, before = row.dense ? null : cost(layer, row, "multiplies");
      if (name === "dense") { this.adopt(row, null); continue; }
      row.method = name;
      if (!canSave(layer, name, row.free)) this.setRank(row, layer.methods[name].top);
      else if (before === null) this.setRank(row, rankAt(usefulRank(layer, name, row.free), 0.5));
      else this.setRank(row, rankWithin(layer, name, before, row.free));   // the same price, as nearly as ranks allow
    }
    this.commit();
    const [first] = free, label = name === "dense" ? "dense" : rows[0].layer.methods[name].label;
    const rank = first && !first.dense ? `, rank ${first.rank.join(", ")}` : "";
    this.speakPlan(free.length === 1 ? `${first.layer.name}: ${label}${rank}` : `${counted(free.length, "layer")}: ${label}`);
  },

  /* The same ranks, other costs; a rank that pays only with free ranks is dense without. */
  setFree(on) {
    this.newGesture();
    this.by = "rule";
    this.free = on;
    for (const row of this.rows.values()) {
      if (this.locked.has(row.layer.name)) continue;
      row.free = on;
      row.built = null;
      if (!row.dense) this.setRank(row, row.rank, 1);
      this.dirty.add(row);
    }
    this.detailOf = null;
    this.commit();
    this.speakPlan(`Free ranks ${on ? "on" : "off"}`);
  },

  /* Unlocked only where all of them are locked. */
  toggleLock(rows) {
    const on = rows.some(row => !this.locked.has(row.layer.name));
    for (const row of rows) {
      if (on) this.locked.add(row.layer.name); else this.locked.delete(row.layer.name);
      row.lock.setAttribute("aria-pressed", String(on));
      this.dirty.add(row);
    }
    this.locks = [...this.locked].sort().join();
    this.act("lock", { locked: [...this.locked] });
    this.schedule();
    this.speak(`${rows.length === 1 ? rows[0].layer.name : counted(rows.length, "layer")} ${on ? "locked" : "unlocked"}.`);
  },

  setHold(quantity) {
    this.hold = quantity ? { quantity, total: totals(this.model, this.choices())[quantity] } : null;
    this.holdSelect.value = quantity || "";
    this.schedule();
    this.speak(quantity ? `${quantity === "bytes" ? "Bytes" : "Multiplies"} are held at ${words.quantity(quantity, this.hold.total)}.` : "Nothing is held.");
  },

  /* Budget lock: scale the ranks of the other unlocked layers by one factor, the largest that keeps the total. */
  giveWay(moved) {
    if (!this.hold) return;
    const { quantity, total } = this.hold, others = [], sharing = [];
    let most = total - this.model.rest[quantity];
    for (const row of this.rows.values()) {
      const { layer, method, free } = row;
      if (moved.has(row) || this.locked.has(layer.name) || !canSave(layer, method, free)) {
        most -= cost(layer, row.dense ? null : row, quantity);
        continue;
      }
      const useful = usefulRank(layer, method, free);
      others.push(row);
      sharing.push({ layer, method, free, full: this.start.get(row).map((r, axis) => Math.min(r, useful[axis] + 1)) });
    }
    ranksWithin(sharing, most, quantity, this.multiple).forEach((rank, i) => {
      if (rank.some((r, axis) => r !== others[i].rank[axis])) { this.setRank(others[i], rank, 1); this.gave.add(others[i].layer.name); }
    });
  },

  /* On this page and, once the hand rests, on all others: the address and Python are told. */
  select(name) {
    if (!this.rows.has(name)) return;
    if (this.picked !== name) {
      this.picked = name;
      window.dispatchEvent(new CustomEvent("rank-selected"));
      clearTimeout(this.telling);
      this.telling = setTimeout(() => this.post(), REST_MILLISECONDS);
    }
    this.show(name);
  },

  show(name) {
    if (!this.rows.has(name)) return;
    if (this.selected === name && this.detailOf === name + this.rows.get(name).method) return;
    const old = this.rows.get(this.selected);
    if (old) this.dirty.add(old);
    this.selected = name;
    this.dirty.add(this.rows.get(name));
    this.schedule();
  },
});
