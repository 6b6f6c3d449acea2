/* Keys of the board. They come from the page as "rank-key", which hands on none that somebody types into a field. */

Object.assign(Board.prototype, {
  /* Whether the key meant something here. */
  hearKey(event) {
    const key = event.key.toLowerCase(), row = this.rows.get(this.selected);
    if (this.pressed) return false;
    if (event.ctrlKey || event.metaKey) {
      if (event.altKey || (key !== "z" && key !== "y")) return false;
      this.act(key === "y" || event.shiftKey ? "redo" : "undo");
      return true;
    }
    if (event.altKey || !row) return false;
    if (event.shiftKey && (key === "arrowup" || key === "arrowdown") && event.target.closest(".rb-row"))
      return this.step(key === "arrowdown" ? 1 : -1, true);
    switch (key) {
      case "enter": return this.nextPart(event.target);
      case "escape": if (!this.marked.length) return false; this.mark([]); return true;
      default: return false;
    }
  },

  /* Keys that are letters: they may be switched off, for those who speak to their machine. */
  hearLetter(event) {
    const row = this.rows.get(this.selected), rows = row && this.marked.includes(row) ? this.marked : [row];
    if (this.pressed || !row) return false;
    switch (event.key.toLowerCase()) {
      case "j": return this.step(1);
      case "k": return this.step(-1);
      case "m": return this.nextMethod(row, rows);
      case "l": this.toggleLock(rows); return true;
      case "s": this.keepSnapshot(); return true;
      case "p": this.unpin(rows.map(one => one.layer.name)); return true;
      default: return false;
    }
  },

  /* To the next layer that is shown, or the one before; mark: and as far as it, from where marking began. */
  step(by, mark = false) {
    const rows = this.shownRows(), at = rows.findIndex(row => row.layer.name === this.selected);
    const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by];
    if (!next) { this.speak(by > 0 ? "This is the last layer." : "This is the first layer."); return true; }
    if (!mark) this.mark([]);
    if (mark) this.markTo(next);
    this.goTo(next);
    return true;
  },

  /* A row takes the focus, wherever it is. */
  goTo(row) {
    const group = this.groups.find(one => one.layers.includes(row.layer));
    if (row.element.hidden) { this.filter.value = ""; this.applyFilter(); }
    if (group.rowBox.hidden) this.unfold(group, true);
    this.select(row.layer.name);
    if (row.built !== row.method) this.drawRow(row);
    row.element.scrollIntoView({ block: "nearest" });
    row.tracks[0].input.focus({ preventScroll: true });
  },

  /* A row is one stop of the Tab key; Enter goes through what it holds: its ranks, then the field for an exact one. */
  nextPart(target) {
    const row = this.rows.get(target.closest?.(".rb-row")?.dataset.layer);
    if (!row || target.type !== "range") return false;
    const parts = [...row.tracks.map(track => track.input), row.entry], next = parts[parts.indexOf(target) + 1];
    next.focus({ preventScroll: true });
    if (next === row.entry) next.select();
    return true;
  },

  leaveEntry(row, event) {
    if (event.key !== "Escape") return;
    row.entry.value = row.dense ? "dense" : row.rank.join(", ");
    row.tracks[0].input.focus({ preventScroll: true });
  },

  nextMethod(row, rows) {
    const common = Object.keys(row.layer.methods).filter(name => rows.every(one => one.layer.methods[name]));
    const names = [...common, "dense"], at = names.indexOf(row.dense ? "dense" : row.method);
    this.setMethod(names[(at + 1) % names.length], rows);
    return true;
  },

  /* Past all rows, for whoever goes by Tab. */
  buildSkip() {
    return node("button", { type: "button", class: "rb-skip", onclick: () => this.methodSelect.focus() }, "Past the layers");
  },
});
