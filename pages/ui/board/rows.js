/* Many layers: the order of the rows, several of them set at once, and what a block sums up to. */

const ORDERS = {                                                 // what a row is sorted by, largest first; names as people count
  network: ["Network order", null],
  name: ["By name", null],
  cost: ["By cost", (board, { layer }) => layer.dense.multiplies],
  loss: ["By loss", (board, row) => lossAlone(board.model, row.layer, row.dense ? null : row)],
  saving: ["By saving", (board, row) => -cost(row.layer, row.dense ? null : row, "bytes") / row.layer.dense.bytes],
};
const SORTED = {
  network: "The layers stand in the order of the network.",
  name: "The layers are sorted by name.",
  cost: "The layers are sorted by the multiplies of the dense layer, most first.",
  loss: "The layers are sorted by what each loses alone, most first.",
  saving: "The layers are sorted by the share of their bytes that is saved, most first.",
};
const TOGETHER = 40;                                             // rows of a sorted list that are left out together where they are out of sight
const NAMES = new Intl.Collator("en", { numeric: true });

Object.assign(Board.prototype, {
  /* -- order -- */

  buildOrder() {
    this.order = "network";
    this.orderSelect = node("select", { "aria-label": "Order of the layers", title: HELP.order, onchange: event => this.sortRows(event.target.value) },
      ...Object.entries(ORDERS).map(([value, [text]]) => node("option", { value }, text)));
    this.sortAgain = node("button", { type: "button", hidden: true, title: "Ranks have changed since the rows were sorted",
      onclick: () => this.sortRows(this.order) }, "Sort again");
    return [this.orderSelect, this.sortAgain];
  },

  /* Rows as they would stand; those of one value as the network has them. */
  sorted(order) {
    const rows = [...this.rows.values()], [, amount] = ORDERS[order];
    if (order === "name") return rows.sort((a, b) => NAMES.compare(a.layer.name, b.layer.name));
    if (!amount) return rows;
    const of = new Map(rows.map(row => [row, amount(this, row)]));
    return rows.sort((a, b) => of.get(b) - of.get(a));
  },

  sortRows(order) {
    const focused = document.activeElement, flat = order !== "network";
    this.order = this.orderSelect.value = order;
    this.sequence = this.sorted(order);
    for (const row of this.sequence) this.writeName(row, flat ? row.layer.name : row.layer.leaf);
    if (!flat) for (const group of this.groups) group.rowBox.replaceChildren(...group.layers.map(layer => this.rows.get(layer.name).element));
    const elements = flat ? this.sequence.map(row => row.element) : [], parts = [];
    for (let at = 0; at < elements.length; at += TOGETHER)
      parts.push(node("div", { class: "rb-details" }, ...elements.slice(at, at + TOGETHER)));
    this.flat.replaceChildren(...parts);
    this.flat.hidden = !flat;
    this.applyFilter();
    this.sortAgain.hidden = true;
    if (focused && this.root.contains(focused)) focused.focus({ preventScroll: true });
    this.speak(SORTED[order]);
  },

  /* Whether rows would stand otherwise now; looked at when nothing moves. */
  drawOrder() {
    if (this.order === "network" || this.order === "name") return;
    this.sortAgain.hidden = this.sorted(this.order).every((row, at) => row === this.sequence[at]);
  },

  /* The end of a name tells layers apart, and stays where it is cut. */
  writeName(row, name) {
    row.name.setAttribute("aria-label", name);
    row.name.replaceChildren(node("span", {}, name.slice(0, -NAME_END)), node("span", {}, name.slice(-NAME_END)));
  },

  shownRows() { return this.sequence.filter(row => !row.element.hidden); },

  applyFilter() {
    const wanted = this.filter.value.toLowerCase().trim();
    let hits = 0;
    for (const { details, layers } of this.groups) {
      let shown = 0;
      for (const layer of layers) {
        const match = !wanted || layer.name.toLowerCase().includes(wanted) || layer.type.toLowerCase().includes(wanted);
        this.rows.get(layer.name).element.hidden = !match;
        shown += match;
      }
      details.hidden = shown === 0 || this.order !== "network";
      hits += shown;
    }
    this.noHit.hidden = hits > 0 || !wanted;
    this.noHit.replaceChildren(`No layer matches “${this.filter.value.trim()}”. `,
      node("button", { type: "button", onclick: () => { this.filter.value = ""; this.applyFilter(); } }, "Clear"));
    if (wanted) this.speak(hits ? `${counted(hits, "layer")} of ${this.rows.size}.` : `No layer matches ${wanted}.`);
  },

  /* -- several at once -- */

  buildMany() {
    this.marked = [];
    this.many = this.buildShare("Marked layers", "All unlocked layers of these at the same share of their break-even rank");
    this.manyMethod = node("select", { "aria-label": "Method of the marked layers", title: HELP.method, onchange: event => {
      if (event.target.value) this.setMethod(event.target.value, this.marked);
      this.drawMany();
    } });
    this.manyLock = node("button", { type: "button", onclick: () => this.toggleLock(this.marked) });
    this.manyCount = node("strong", {});
    return this.manyBar = node("div", { class: "rb-many", role: "group", "aria-label": "Marked layers", hidden: true },
      this.manyCount, this.manyMethod, this.many.slider, this.many.figure, this.manyLock,
      node("button", { type: "button", class: "rb-remove", "aria-label": "Mark none", title: "Mark none (Escape)", onclick: () => this.mark([]) }, "×"));
  },

  clickName(row, event) {
    const { name } = row.layer;
    if (event.shiftKey) this.markTo(row);
    else if (event.ctrlKey || event.metaKey) {
      const before = this.marked.length ? this.marked : [this.rows.get(this.selected)];
      this.mark(before.includes(row) ? before.filter(one => one !== row) : [...before, row]);
      this.anchor = row;
      this.select(name);
    } else {
      this.mark([]);
      this.select(name);
      this.openSheet();
    }
  },

  /* From the row that was selected before to this one, as they stand. */
  markTo(row) {
    const rows = this.shownRows(), from = this.anchor && this.marked.length ? this.anchor : this.rows.get(this.selected);
    const [first, last] = [rows.indexOf(from), rows.indexOf(row)].sort((a, b) => a - b);
    this.mark(rows.slice(Math.max(0, first), last + 1));
    this.anchor = from;
    this.select(row.layer.name);
  },

  mark(rows) {
    if (!rows.length && !this.marked.length) return;
    const few = rows.length < 2 ? [] : rows, changed = new Set([...this.marked, ...few]);
    this.marked = few;
    const now = new Set(few);
    for (const row of changed) {
      row.element.classList.toggle("rb-marked", now.has(row));
      if (now.has(row)) row.name.setAttribute("aria-pressed", "true"); else row.name.removeAttribute("aria-pressed");
    }
    this.many.layers = few.map(row => row.layer);
    this.manyBar.hidden = !few.length;
    if (!few.length) this.anchor = null;
    else {
      const common = Object.entries(few[0].layer.methods).filter(([name]) => few.every(row => row.layer.methods[name]));
      this.manyMethod.replaceChildren(node("option", { value: "" }, "Method…"),
        ...common.map(([name, method]) => node("option", { value: name }, method.label)), node("option", { value: "dense" }, "Dense"));
    }
    this.drawMany();
    this.speak(few.length ? `${counted(few.length, "layer")} marked.` : "No layer marked.");
  },

  drawMany() {
    if (!this.marked.length) return;
    const [first] = this.marked, methodOf = row => row.dense ? "dense" : row.method;
    this.manyCount.textContent = counted(this.marked.length, "layer");
    this.manyMethod.value = this.marked.every(row => methodOf(row) === methodOf(first)) ? methodOf(first) : "";
    this.manyLock.textContent = this.marked.every(row => this.locked.has(row.layer.name)) ? "Unlock" : "Lock";
    this.drawShare(this.many);
  },

  /* -- what a block sums up to -- */

  /* The share of break-even at which unlocked layers stand in the mean: what the slider would set. */
  drawShare(group) {
    const rows = group.layers.map(layer => this.rows.get(layer.name)).filter(row => canSave(row.layer, row.method, row.free));
    const free = rows.filter(row => !this.locked.has(row.layer.name)), able = free.length ? free : rows;
    const shares = able.map(row => row.dense ? 1 : Math.min(1, row.rank[0] / usefulRank(row.layer, row.method, row.free)[0]));
    group.share = able.length ? Math.max(1, rounded(100 * shares.reduce((a, b) => a + b, 0) / able.length)) : 100;
    group.slider.disabled = !free.length;
    if (this.held !== group) group.slider.value = group.share;
    const alike = shares.every(share => Math.abs(100 * share - group.share) < 1);
    const text = able.length ? `${alike ? "" : "⌀ "}${group.share} %` : "–";
    if (group.figure.textContent !== text) group.figure.textContent = text;
    group.slider.setAttribute("aria-valuetext", `${group.share} % of break-even${alike ? "" : " in the mean"}`);
  },

  drawGroups(moved) {
    const touched = new Set(moved.map(row => row.layer));
    const [bytes, multiplies] = QUANTITIES.map(quantity => this[quantity + "Card"].chart.values);
    const sum = (layers, of) => layers.reduce((total, layer) => total + of(layer), 0);
    for (const group of this.groups) {
      const { layers } = group;
      if (!layers.some(layer => touched.has(layer))) continue;
      this.drawShare(group);
      const now = sum(layers, layer => bytes[layer.index]), dense = sum(layers, layer => layer.dense.bytes), saved = 1 - now / dense;
      const texts = [words.quantity("bytes", now), words.count(sum(layers, layer => multiplies[layer.index])),
        now === dense ? "–" : `${saved > 0 ? "−" : "+"}${fixed(Math.abs(100 * saved), 0)} %`];
      const text = texts.join(" · ");
      if (group.says === text) continue;
      group.says = text;
      group.sums.replaceChildren(...texts.map((part, at) => node("span", { class: `rb-sum-${["bytes", "multiplies", "saving"][at]}` }, part)));
      group.sums.title = `${texts[0]} of ${words.quantity("bytes", dense)}, ${texts[1]} multiplies, ${texts[2]} of the bytes`;
    }
    this.drawMany();
  },
});

/* "1 layer", "3 layers" */
function counted(number, thing) { return `${words.whole(number)} ${thing}${number === 1 ? "" : "s"}`; }
