/* The rank board. Python owns the plan, the browser owns the thumb during a drag; `rev` settles who is right:
   ranks from Python are adopted only when their rev is newer than ours. While a thumb moves nothing is sent: costs are
   recomputed from exact coefficients and charts are restyled once per animation frame. */
(() => {
"use strict";

const QUANTITIES = ["bytes", "multiplies"];
const REST_MILLISECONDS = 250;
const AGAIN_MILLISECONDS = 5000;                             // without an answer, until a message goes out again
const MOST_BARS = 240;                                     // of a chart: beyond it neighbours share a bar

/* ---- closed forms: the same integers as Python's ---------------------------------------------------------------- */

function cost(layer, choice, quantity) {
  if (!choice) return layer.dense[quantity];
  const c = layer.methods[choice.method][quantity];
  const [a, b] = choice.rank;
  return choice.rank.length === 1 ? c[0] + c[1] * a : c[0] + c[1] * a + c[2] * b + c[3] * a * b;
}

function totals(model, choices) {
  const sum = { bytes: model.rest.bytes, multiplies: model.rest.multiplies };
  for (const layer of model.layers)
    for (const q of QUANTITIES) sum[q] += cost(layer, choices[layer.name] || null, q);
  return sum;
}

function between(knots, values, x) {
  let low = 0, high = knots.length - 1;
  if (x <= knots[0]) return values[0];
  if (x >= knots[high]) return values[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (knots[middle] <= x) low = middle; else high = middle;
  }
  return values[low] + (values[high] - values[low]) * (x - knots[low]) / (knots[high] - knots[low]);
}

/* The curves of a method's axes. Only the default method's come with the model; until another one is in use and Python
   has factorised it, the default's stand in, stretched to its ranks. */
function tailsOf(layer, name) {
  const method = layer.methods[name];
  if (method.tails) return method.tails;
  const [known] = layer.methods[layer.default].tails, last = known.ranks[known.ranks.length - 1];
  return method.top.map(top => {
    const stretch = r => 1 + (r - 1) * (top - 1) / Math.max(1, last - 1);
    return { ranks: known.ranks.map(r => r ? stretch(r) : 0), lost: known.lost.map(l => l / method.top.length), sigma_ranks: [], sigma: [] };
  });
}

/* Squared relative weight error; the tails of two axes add (bound of the higher-order SVD). */
function errorSquared(layer, choice) {
  if (!choice) return 0;
  const tails = tailsOf(layer, choice.method);
  let sum = 0;
  choice.rank.forEach((r, axis) => { sum += between(tails[axis].ranks, tails[axis].lost, r); });
  return Math.min(1, sum);
}

/* Mean squared change of the outputs when this layer alone is compressed: measured at a few ranks, in between along
   the closed-form error; without measurements the rough proportion. */
function change(model, layer, choice) {
  if (!choice) return 0;
  const e = errorSquared(layer, choice);
  if (e <= 0) return 0;
  const points = layer.methods[choice.method].points;
  if (!points || !points.length) return model.prediction.rough * e;
  const x = Math.log(e), first = points[0], last = points[points.length - 1];
  if (x <= first[0]) return Math.exp(first[1] + (x - first[0]));
  if (x >= last[0]) return Math.exp(last[1] + (x - last[0]));
  const after = points.findIndex(p => p[0] >= x), [x0, y0] = points[after - 1], [x1, y1] = points[after];
  return Math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0));
}

/* The noise model: changes of the layers add up, the table says what that much noise does to the score. */
function lookUp(model, variance) {
  const t = model.prediction.table;
  if (!t) return null;
  const x = variance > 0 ? Math.log(variance) : t.log_variance[0];
  return between(t.log_variance, t.score, x);
}

function predict(model, choices) {
  const { context } = model, chosen = model.layers.map(layer => choices[layer.name]);
  let variance = 0, rough = false, later = 0;
  for (let i = model.layers.length - 1; i >= 0; i--) {             // from the last, so that later ones are counted
    const layer = model.layers[i], choice = chosen[i];
    if (!choice) continue;
    const points = layer.methods[choice.method].points;
    if (!points || !points.length) rough = true;
    const alone = change(model, layer, choice), kept = context && context.kept[layer.name];
    const rest = Math.max(1, model.layers.length - 1 - i);
    variance += kept && alone > 0
      ? alone * Math.exp(later / rest * between(kept.map(k => k[0]), kept.map(k => k[1]), Math.log(alone))) : alone;
    later += 1;
  }
  return { value: afterNoise(model, (context ? context.scale : 1) * variance), rough };
}

/* The table is made from some of the samples, so only its differences count. */
function afterNoise(model, variance) {
  const t = model.prediction.table;
  return t && model.metric.dense !== null ? model.metric.dense + lookUp(model, variance) - t.score[0] : null;
}

/* ---- words and figures ------------------------------------------------------------------------------------------ */

function amount(value, unit) {
  const space = "\u202f";
  for (const [size, prefix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (value >= size) return (value / size).toPrecision(4) + space + prefix + unit;
  return value.toFixed(0) + (unit ? space + unit : "");
}
const figures = {
  bytes: v => v < 1e3 ? v.toFixed(2) + "\u202fB" : amount(v, "B"),
  multiplies: v => v < 1e3 ? v.toFixed(2) : amount(v, ""),
};
const percent = (v, digits = 1) => (100 * v).toFixed(digits) + "\u202f%";
const scoreText = (model, v) => model.metric.share ? percent(v, 2) : Number(v).toPrecision(4);
const dropText = (model, v) => model.metric.share ? Math.abs(100 * v).toFixed(2) + " points" : Math.abs(v).toPrecision(3);

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function rankAt(top, share) { return top.map(m => Math.min(m, Math.max(1, Math.round(share * m)))); }

/* ---- the board -------------------------------------------------------------------------------------------------- */

class Board {
  constructor(root, model, send) {
    this.root = root;
    this.model = model;
    this.send = send;
    this.rev = -1;
    this.gesture = Date.now();                             // also newer than those of a board before this one
    this.sent = "";
    this.name = Math.random().toString(36).slice(2);
    this.outbox = [];                                      // what Python has not said it has heard
    this.said = 0;
    this.rows = new Map();
    this.score = null;
    this.scoreRev = -1;
    this.measuring = false;
    this.selected = model.layers.length ? model.layers[0].name : null;
    this.locked = new Set();
    this.multiple = 1;
    this.hold = null;
    this.axis = "multiplies";
    this.dirty = new Set();
    this.frame = 0;
    this.hidden = new Set();                               // rows out of sight, and those not drawn as they are
    this.stale = new Set();
    this.sight = new IntersectionObserver(seen => {
      for (const { target, isIntersecting } of seen) {
        const row = this.rows.get(target.dataset.layer);
        if (!isIntersecting) this.hidden.add(row);
        else if (this.hidden.delete(row) && this.stale.has(row)) this.drawRow(row);
      }
    }, { rootMargin: "300px" });
    this.group = Math.ceil(model.layers.length / MOST_BARS) || 1;
    this.build();
    this.onFeed = event => this.feed(event.detail);
    this.palette();
  }

  /* While it is on the page it hears the feed and follows the theme. */
  live() {
    window.addEventListener("rank-feed", this.onFeed);
    clearInterval(this.look);
    this.look = window.setInterval(() => { if (this.root.isConnected) this.palette(); else this.leave(); }, 700);
  }

  leave() {
    window.removeEventListener("rank-feed", this.onFeed);
    clearInterval(this.look);
    clearTimeout(this.again);
  }

  /* -- structure -- */

  build() {
    const { model } = this;
    this.status = node("p", { class: "rb-status", role: "status", "aria-live": "polite" });
    this.root.replaceChildren(
      node("div", { class: "rb" },
        this.buildToolbar(),
        node("div", { class: "rb-cards" },
          this.buildCard("accuracy", model.metric.label, model.help.interval),
          this.buildCard("bytes", "Memory", model.help.bytes),
          this.buildCard("multiplies", "Multiplies", model.help.multiplies)),
        node("div", { class: "rb-main" }, this.buildLayers(), this.buildSide()),
        this.status));
    this.root.addEventListener("keydown", event => {
      if (!(event.ctrlKey || event.metaKey) || event.target.matches("input[type=text], input[type=search]")) return;
      const key = event.key.toLowerCase();
      if (key === "z" || key === "y") {
        event.preventDefault();
        this.act(key === "y" || event.shiftKey ? "redo" : "undo");
      }
    });
  }

  buildToolbar() {
    const button = (text, help, action, extra = {}) =>
      node("button", { type: "button", title: help, onclick: action, ...extra }, text);
    this.undoButton = button("Undo", "Take back the last change (Ctrl+Z)", () => this.act("undo"));
    this.redoButton = button("Redo", "Do it again (Ctrl+Shift+Z)", () => this.act("redo"));
    this.presetSelect = node("select", {
      "aria-label": "Preset", title: this.model.help.break_even,
      onchange: event => { this.preset(event.target.value); event.target.value = ""; },
    }, node("option", { value: "" }, "Preset…"));
    for (const [value, text] of [
      ["share:0.75", "75 % of break-even"], ["share:0.5", "50 % of break-even"], ["share:0.25", "25 % of break-even"],
      ["energy:0.99", "Energy ≥ 99 %"], ["energy:0.9", "Energy ≥ 90 %"], ["energy:0.8", "Energy ≥ 80 %"],
    ]) this.presetSelect.append(node("option", { value }, text));
    this.snapSelect = node("select", {
      "aria-label": "Snap ranks to multiples", title: "Ranks that are multiples of the vector width run faster",
      onchange: event => { this.multiple = Number(event.target.value); },
    }, ...[1, 4, 8, 16].map(k => node("option", { value: k }, k === 1 ? "Any rank" : `Multiples of ${k}`)));
    this.holdSelect = node("select", {
      "aria-label": "Budget lock", title: "Drag one layer: the other unlocked layers give way, so that the total stays",
      onchange: event => this.setHold(event.target.value || null),
    }, node("option", { value: "" }, "No budget lock"), node("option", { value: "bytes" }, "Hold bytes"),
      node("option", { value: "multiplies" }, "Hold multiplies"));
    this.correctBox = node("input", { type: "checkbox", "aria-label": "Correction",
      onchange: event => this.act("correct", { on: event.target.checked }) });
    this.toleranceSelect = node("select", { "aria-label": "Tolerance",
      title: "Stop measuring as soon as it is clear whether the drop is within this",
      onchange: event => this.act("tolerate", { drop: event.target.value ? Number(event.target.value) : null }) },
      node("option", { value: "" }, "Measure all"),
      ...[0.005, 0.01, 0.02, 0.05].map(d => node("option", { value: d }, `Tolerate ${100 * d} points`)));
    this.toleranceSelect.hidden = !this.model.metric.share;
    this.filter = node("input", {
      type: "search", placeholder: "Filter layers", "aria-label": "Filter layers", oninput: () => this.applyFilter(),
    });
    return node("div", { class: "rb-toolbar", role: "toolbar", "aria-label": "Plan" },
      this.undoButton, this.redoButton,
      button("All dense", "Every layer as it was trained", () => this.preset("dense")),
      this.presetSelect, this.snapSelect, this.holdSelect,
      node("label", { class: "rb-check", title: this.model.help.correction }, this.correctBox, "Correction"), this.toleranceSelect, this.filter);
  }

  buildCard(kind, label, help) {
    const figure = node("output", { class: "rb-figure", "data-testid": `live-${kind}`, "aria-label": label }, "…");
    const note = node("p", { class: "rb-note" });
    const chart = node("div", {
      class: "rb-chart", "data-testid": `chart-${kind}`, role: "img", "aria-label": `${label}, in total and layer by layer`,
    });
    this[kind + "Card"] = { figure, note, chart };
    return node("section", { class: "rb-card", "aria-label": label },
      node("h3", { title: help }, label, node("span", { class: "rb-help", "aria-hidden": "true" }, "?")),
      figure, note, chart);
  }

  buildLayers() {
    const blocks = new Map();
    for (const layer of this.model.layers) {
      if (!blocks.has(layer.block)) blocks.set(layer.block, []);
      blocks.get(layer.block).push(layer);
    }
    const list = node("div", { class: "rb-layers", role: "group", "aria-label": "Ranks, layer by layer" });
    const term = (text, help) => node("span", { class: "rb-term", title: help, tabindex: 0 }, text);
    list.append(node("p", { class: "rb-legend" }, "Each track is a layer's spectrum, filled up to its ",
      term("rank", this.model.help.rank), "; dashed lines mark ", term("break-even", this.model.help.break_even),
      ", from where it stays dense.", this.latencyLegend = node("span", { hidden: true },
        " A solid line marks break-even in measured time, a dot a rank slower than a larger one."),
      " On the right: rank and bytes saved."));
    this.groups = [];
    for (const [block, layers] of blocks) {
      const slider = node("input", {
        type: "range", min: 1, max: 100, step: 1, value: 100, class: "rb-group", "aria-label": `${block} group`,
        title: "All unlocked layers of this block at the same share of their break-even rank",
      });
      slider.addEventListener("input", () => this.dragGroup(layers, Number(slider.value) / 100, slider));
      slider.addEventListener("pointerdown", () => this.press());
      const summary = node("summary", {}, node("span", { class: "rb-block" }, block), slider);
      slider.addEventListener("click", event => event.preventDefault());
      const details = node("details", { open: true, class: "rb-details" }, summary);
      for (const layer of layers) details.append(this.buildRow(layer));
      list.append(details);
      this.groups.push({ details, layers, slider });
    }
    if (!this.model.layers.length) list.append(node("p", {}, "No layer of this network can be compressed; Model says why."));
    return list;
  }

  buildRow(layer) {
    const row = { layer, method: layer.default, rank: null, dense: true, tracks: [] };
    row.lock = node("button", {
      type: "button", class: "rb-lock", "aria-pressed": "false", "aria-label": `Lock ${layer.name}`,
      title: "Lock: presets, groups and the budget lock leave this layer alone",
      onclick: () => this.toggleLock(row),
    }, "" );
    row.name = node("button", {
      type: "button", class: "rb-name", title: `${layer.name} · ${layer.type} ${layer.shape}`,
      onclick: () => this.select(layer.name),
    }, layer.leaf);
    row.trackBox = node("div", { class: "rb-tracks" });
    row.entry = node("input", {
      type: "text", class: "rb-entry", inputmode: "numeric", "aria-label": `${layer.name} exact rank`,
      title: "Type a rank; Tucker-2 takes two, as in 16, 12", size: 5,
      onchange: () => this.enter(row),
    });
    row.saving = node("span", { class: "rb-saving" });
    row.element = node("div", { class: "rb-row", "data-layer": layer.name }, row.lock, row.name, row.trackBox, row.entry, row.saving);
    this.rows.set(layer.name, row);
    this.sight.observe(row.element);
    return row.element;
  }

  buildTracks(row) {
    const { layer } = row;
    const method = layer.methods[row.method];
    row.trackBox.replaceChildren();
    row.tracks = method.axes.map((axis, index) => {
      const top = method.top[index];
      const label = method.axes.length === 1 ? `${layer.name} rank` : `${layer.name} rank ${axis}`;
      const input = node("input", { type: "range", min: 1, max: top, step: 1, "aria-label": label });
      input.addEventListener("input", () => this.drag(row, index, Number(input.value)));
      input.addEventListener("pointerdown", () => this.press());
      input.addEventListener("focus", () => this.select(layer.name));
      const fill = node("div", { class: "rb-fill" });
      const tail = tailsOf(layer, row.method)[index];
      const shape = silhouette(tail, top);
      const back = node("div", { class: "rb-back" });
      for (const part of [back, fill]) part.style.clipPath = shape;
      const kept = node("div", { class: "rb-kept" }, fill);
      const marks = [];
      for (const quantity of QUANTITIES) {
        const even = method.even[quantity][index];
        if (even > 0 && even < top) {
          const mark = node("div", { class: `rb-even rb-even-${quantity}`, title: `break-even for ${quantity}: rank ${even}` });
          mark.style.left = `${position(even, top)}%`;
          marks.push(mark);
        }
      }
      marks.push(...this.latencyMarks(method, index));
      const track = node("div", { class: "rb-track" }, node("div", { class: "rb-rail" }, back, kept, ...marks), input);
      row.trackBox.append(track);
      return { input, kept, top };
    });
    row.built = row.method;
  }

  /* Measured on Compare: from where a rank is no faster than dense, and ranks that a larger one beats in time. */
  latencyMarks(method, index) {
    const { latency } = method, top = method.top[index], marks = [];
    if (!latency) return marks;
    const put = (rank, name, title) => {
      const mark = node("div", { class: name, title });
      mark.style.left = `${position(rank, top)}%`;
      marks.push(mark);
    };
    for (const rank of latency.dominated) put(rank[index], "rb-dominated", `rank ${rank.join(", ")}: slower than a larger rank (${latency.runtime})`);
    const even = latency.even && latency.even[index];
    if (even > 0 && even < top) put(even, "rb-even rb-even-latency", `break-even for latency (${latency.runtime}): rank ${even}`);
    return marks;
  }

  buildSide() {
    this.detailTitle = node("h3", { class: "rb-detail-title" });
    this.methodSelect = node("select", { "aria-label": "Method", title: "How this layer is factorised",
      onchange: event => this.setMethod(event.target.value) });
    this.detailFacts = node("p", { class: "rb-facts" });
    this.detailChart = node("div", { class: "rb-spectrum", "data-testid": "chart-spectrum", role: "img",
      "aria-label": "Singular values and energy of the selected layer; a click sets its rank" });
    this.axisSelect = node("select", { "aria-label": "Trade-off against", onchange: event => {
      this.axis = event.target.value; this.drawTradeoff(); } },
      node("option", { value: "multiplies" }, "multiplies"), node("option", { value: "bytes" }, "bytes"));
    this.tradeoffChart = node("div", { class: "rb-tradeoff", "data-testid": "chart-tradeoff", role: "img",
      "aria-label": "Score against cost; a click on a snapshot restores it" });
    this.snapshotName = node("input", { type: "text", placeholder: "Name", "aria-label": "Snapshot name", maxlength: 40 });
    this.snapshotList = node("ul", { class: "rb-snapshots" });
    const pick = label => node("select", { "aria-label": label, onchange: () => this.drawDifference() });
    this.differenceFrom = pick("Compare");
    this.differenceTo = pick("With");
    this.differenceList = node("ul", { class: "rb-difference", "data-testid": "snapshot-difference" });
    this.difference = node("div", { hidden: true },
      node("div", { class: "rb-snap" }, node("label", {}, "Compare ", this.differenceFrom), node("label", {}, " with ", this.differenceTo)),
      this.differenceList);
    return node("div", { class: "rb-side" },
      node("section", { class: "rb-panel", "aria-label": "Selected layer" },
        node("div", { class: "rb-panel-head" }, this.detailTitle, this.methodSelect), this.detailFacts, this.detailChart),
      node("section", { class: "rb-panel", "aria-label": "Trade-off" },
        node("div", { class: "rb-panel-head" }, node("h3", {}, "Score against"), this.axisSelect), this.tradeoffChart,
        node("div", { class: "rb-snap" }, this.snapshotName,
          node("button", { type: "button", title: "Keep this plan as a point to come back to", onclick: () => {
            this.act("snapshot", { name: this.snapshotName.value }); this.snapshotName.value = "";
          } }, "Snapshot")),
        this.snapshotList, this.difference));
  }

  /* -- what Python says -- */

  update(data) {
    this.data = data;
    const [board, heard] = data.heard;
    if (board === this.name) this.outbox = this.outbox.filter(message => message.id > heard);
    for (const [name, methods] of Object.entries(data.tails || {}))
      for (const [method, tails] of Object.entries(methods)) this.learn(name, method, tails);
    this.learnLatency(data.latency || {});
    this.undoButton.disabled = !data.can_undo;
    this.redoButton.disabled = !data.can_redo;
    if (data.rev > this.rev && !this.dragging) {
      this.rev = data.rev;
      for (const row of this.rows.values()) this.adopt(row, data.choices[row.layer.name] || null);
      if (!this.chosen) this.select(this.chosen = Object.keys(data.choices)[0] || this.selected);
      this.sent = JSON.stringify(this.choices());
      this.ghost = null;
      if (this.hold) this.setHold(this.hold.quantity);
    }
    this.correctBox.checked = data.corrected;
    this.toleranceSelect.value = data.tolerance === null ? "" : String(data.tolerance);
    if (data.rev === this.rev) this.hear(data);
    if (this.locks !== data.locked.join()) {
      this.locks = data.locked.join();
      this.locked = new Set(data.locked);
      for (const row of this.rows.values()) row.lock.setAttribute("aria-pressed", String(this.locked.has(row.layer.name)));
    }
    this.drawSnapshots();
    this.drawDifference();
    if (this.dragging) this.schedule(); else this.draw(true);
  }

  learn(name, method, tails) {
    const row = this.rows.get(name), known = row.layer.methods[method];
    if (known.tails) return;
    known.tails = tails;
    if (row.method === method) { row.built = null; this.detailOf = null; this.dirty.add(row); }
  }

  learnLatency(latency) {
    const known = JSON.stringify(latency);
    if (known === (this.latency || "{}")) return;
    this.latency = known;
    this.latencyLegend.hidden = known === "{}";
    for (const row of this.rows.values()) {
      for (const [name, method] of Object.entries(row.layer.methods)) method.latency = (latency[row.layer.name] || {})[name];
      row.built = null;
      this.dirty.add(row);
    }
    this.detailOf = null;
  }

  feed(message) {
    if (message.model !== this.model.key) return;
    if (message.prediction) { this.model.prediction = message.prediction; this.schedule(); }
    if (message.learning !== undefined) this.learning = message.learning;
    if (message.points) {
      for (const [name, methods] of Object.entries(message.points)) {
        const row = this.rows.get(name);
        if (row) for (const [method, points] of Object.entries(methods))
          if (row.layer.methods[method]) row.layer.methods[method].points = points;
      }
      this.schedule();
    }
    if (message.context) this.model.context = message.context;
    if (message.uniform) { this.model.uniform = message.uniform; this.drawTradeoff(); }
    if (message.rev !== this.rev || this.dragging) return;
    const before = this.measuring;
    this.hear(message);
    if (before && !this.measuring && this.score) this.announce();
    this.drawAccuracy();
    this.drawTradeoff();
  }

  /* Figures of the plan as it stands. */
  hear({ score, doing, done, plain, error }) {
    this.doing = doing;
    this.measuring = !done;
    this.plain = plain;
    if (score) { this.score = score; this.scoreRev = this.rev; if (done) this.model.metric.dense = score.dense; }
    if (error) this.status.textContent = error;
  }

  announce() {
    const t = totals(this.model, this.choices());
    this.status.textContent = `Measured ${scoreText(this.model, this.score.value)} on ${this.score.samples} samples; `
      + `${figures.bytes(t.bytes)}, ${figures.multiplies(t.multiplies)} multiplies.`;
  }

  adopt(row, choice) {
    row.method = choice ? choice.method : (row.layer.methods[row.method] ? row.method : row.layer.default);
    row.dense = !choice;
    row.rank = choice ? choice.rank.slice() : row.layer.methods[row.method].top.slice();
    this.dirty.add(row);
  }

  /* -- what the person does -- */

  choices() {
    const chosen = {};
    for (const row of this.rows.values()) if (!row.dense) chosen[row.layer.name] = { method: row.method, rank: row.rank };
    return chosen;
  }

  savesNothing(layer, choice) { return QUANTITIES.every(q => cost(layer, choice, q) >= layer.dense[q]); }

  snap(value, top) {
    if (this.multiple === 1) return value;
    return Math.min(top, Math.max(this.multiple, Math.round(value / this.multiple) * this.multiple));
  }

  setRank(row, rank, snapped = true) {
    const { top } = row.layer.methods[row.method];
    row.rank = rank.map((r, i) => this.allowed(top[i], r, snapped));
    row.dense = this.savesNothing(row.layer, { method: row.method, rank: row.rank });
    this.dirty.add(row);
  }

  /* The nearest rank, along one axis, that a layer can have. */
  allowed(top, r, snapped = true) {
    const inside = Math.min(top, Math.max(1, Math.round(r)));
    return snapped ? this.snap(inside, top) : inside;
  }

  drag(row, axis, value) {
    this.begin();
    this.select(row.layer.name);
    const rank = row.rank.slice();
    rank[axis] = value;
    this.setRank(row, rank);
    this.giveWay(new Set([row]));
    this.schedule();
    this.rest();
  }

  dragGroup(layers, share, slider) {
    this.begin();
    slider.setAttribute("aria-valuetext", `${Math.round(100 * share)} % of break-even`);
    const moved = new Set();
    for (const layer of layers) {
      const row = this.rows.get(layer.name);
      if (this.locked.has(layer.name) || !this.canSave(row)) continue;
      this.setRank(row, rankAt(this.useful(row), share));
      moved.add(row);
    }
    this.giveWay(moved);
    this.schedule();
    this.rest();
  }

  /* A gesture is one drag or one run of key presses: one step of undo, however often it rested. */
  press() {
    this.pressed = true;
    this.newGesture();
    const release = () => {
      window.removeEventListener("pointerup", release);
      window.removeEventListener("pointercancel", release);
      this.pressed = false;
      setTimeout(() => this.settle());                          // after the last input event
    };
    window.addEventListener("pointerup", release);
    window.addEventListener("pointercancel", release);
  }

  newGesture() {
    this.gesture += 1;
    this.start = new Map([...this.rows.values()].map(row => [row, row.rank.slice()]));
  }

  begin() {
    if (this.dragging) return;
    this.dragging = true;
    if (!this.pressed) this.newGesture();
  }

  rest() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.settle(), REST_MILLISECONDS);
  }

  settle() {
    this.dragging = false;
    this.commit();
  }

  pending() {
    clearTimeout(this.timer);
    const choices = this.choices(), now = JSON.stringify(choices);
    if (now === this.sent) return null;
    this.sent = now;
    this.rev = Math.max(this.rev, this.data.rev) + 1;
    this.measuring = true;
    this.doing = "";
    this.plain = null;
    return { rev: this.rev, gesture: this.gesture, choices };
  }

  commit() {
    const plan = this.pending();
    if (plan) { this.say("commit", plan); this.drawDifference(); }
    this.draw(true);
  }

  act(action, extra = {}) {
    const plan = this.pending();
    if (plan) this.say("commit", plan);
    this.say(action, extra);
  }

  /* Of two triggers that come close together Streamlit keeps the later one, and one that comes while a page is still
     being built may be lost. So whatever Python has not said it has heard goes out again with the next, or by itself. */
  say(action, extra) {
    const last = this.outbox[this.outbox.length - 1];
    if (action === "commit" && last && last.action === "commit" && last.gesture === extra.gesture) this.outbox.pop();
    this.outbox.push({ id: this.said += 1, action, ...extra });
    this.post();
  }

  post() {
    clearTimeout(this.again);
    if (!this.outbox.length || !this.root.isConnected) return;
    this.send("messages", { board: this.name, model: this.model.key, messages: this.outbox });
    this.again = setTimeout(() => this.post(), AGAIN_MILLISECONDS);
  }

  useful(row) {
    const even = row.layer.methods[row.method].even;
    return even.bytes.reduce((a, b) => a * b, 1) >= even.multiplies.reduce((a, b) => a * b, 1) ? even.bytes : even.multiplies;
  }

  canSave(row) { return this.useful(row).every(r => r > 0); }

  preset(value) {
    if (!value) return;
    this.newGesture();
    const [kind, number] = value.split(":");
    for (const row of this.rows.values()) {
      if (this.locked.has(row.layer.name)) continue;
      if (kind === "dense") { this.adopt(row, null); continue; }
      if (!this.canSave(row)) continue;
      if (kind === "share") this.setRank(row, rankAt(this.useful(row), Number(number)));
      else {
        const { top } = row.layer.methods[row.method], tails = tailsOf(row.layer, row.method);
        this.setRank(row, tails.map((tail, axis) => energyRank(tail, top[axis], Number(number))));
      }
    }
    this.commit();
  }

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
    this.setRank(row, given, false);
    this.select(row.layer.name);
    this.commit();
  }

  setMethod(name) {
    const row = this.rows.get(this.selected);
    this.newGesture();
    if (name === "dense") this.adopt(row, null);
    else {
      const before = row.dense ? null : cost(row.layer, { method: row.method, rank: row.rank }, "multiplies");
      row.method = name;
      const top = row.layer.methods[name].top;
      row.rank = top.slice();
      if (!this.canSave(row)) this.setRank(row, top);
      else if (before === null) this.setRank(row, rankAt(this.useful(row), 0.5));
      else {                                       // the same price under the new method, as nearly as ranks allow
        let share = 1;
        for (let s = 100; s >= 1; s--) {
          share = s / 100;
          if (cost(row.layer, { method: name, rank: rankAt(top, share) }, "multiplies") <= before) break;
        }
        this.setRank(row, rankAt(top, share));
      }
    }
    this.commit();
  }

  toggleLock(row) {
    const on = !this.locked.has(row.layer.name);
    if (on) this.locked.add(row.layer.name); else this.locked.delete(row.layer.name);
    this.locks = [...this.locked].sort().join();
    row.lock.setAttribute("aria-pressed", String(on));
    this.act("lock", { locked: [...this.locked] });
  }

  setHold(quantity) {
    this.hold = quantity ? { quantity, total: totals(this.model, this.choices())[quantity] } : null;
    this.holdSelect.value = quantity || "";
    this.schedule();
  }

  /* Budget lock: scale the ranks of the other unlocked layers by one factor, the largest that keeps the total. */
  giveWay(moved) {
    if (!this.hold) return;
    const { quantity, total } = this.hold, others = [];
    let fixed = this.model.rest[quantity];
    for (const row of this.rows.values()) {
      if (moved.has(row) || this.locked.has(row.layer.name) || !this.canSave(row)) {
        fixed += cost(row.layer, row.dense ? null : row, quantity);
        continue;
      }
      const useful = this.useful(row), full = this.start.get(row).map((r, i) => Math.min(r, useful[i] + 1));
      others.push({ row, full, top: row.layer.methods[row.method].top, choice: { method: row.method, rank: [] } });
    }
    const scaled = ({ full, top, choice }, factor) => {            // in place: thousands of these make a frame
      for (let i = 0; i < full.length; i++) choice.rank[i] = this.allowed(top[i], full[i] * factor);
      return choice;
    };
    const fits = factor => {
      let sum = fixed;
      for (const other of others) {
        const choice = scaled(other, factor), { layer } = other.row;
        sum += cost(layer, this.savesNothing(layer, choice) ? null : choice, quantity);
        if (sum > total) return false;
      }
      return true;
    };
    let low = 0, high = 4;
    if (fits(high)) low = high;
    for (let i = 0; i < 16 && low < high; i++) {
      const middle = (low + high) / 2;
      if (fits(middle)) low = middle; else high = middle;
    }
    for (const other of others) {
      const { rank } = scaled(other, low);
      if (rank.some((r, i) => r !== other.row.rank[i])) this.setRank(other.row, rank, false);
    }
  }

  select(name) {
    if (!this.rows.has(name)) return;
    if (this.selected === name && this.detailOf === name + this.rows.get(name).method) return;
    const old = this.rows.get(this.selected);
    if (old) this.dirty.add(old);
    this.selected = name;
    this.dirty.add(this.rows.get(name));
    this.schedule();
  }

  applyFilter() {
    const words = this.filter.value.toLowerCase().trim();
    for (const { details, layers } of this.groups) {
      let shown = 0;
      for (const layer of layers) {
        const match = !words || layer.name.toLowerCase().includes(words) || layer.type.toLowerCase().includes(words);
        this.rows.get(layer.name).element.hidden = !match;
        shown += match;
      }
      details.hidden = shown === 0;
    }
  }

  /* -- drawing -- */

  schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(false); });
  }

  draw(everything) {
    if (!window.Plotly) return;
    const moved = [...this.dirty];
    this.dirty.clear();
    for (const row of moved) this.stale.add(row);
    for (const row of this.stale)
      if (!this.dragging || !this.hidden.has(row)) this.drawRow(row);
    const choices = this.choices();
    const now = totals(this.model, choices), predicted = predict(this.model, choices);
    for (const quantity of QUANTITIES) this.drawCost(quantity, now[quantity], choices, everything ? null : moved);
    this.drawAccuracy(everything ? null : moved, choices, predicted);
    this.drawDetail();
    this.moveTradeoff(now, predicted.value);
    if (everything) this.drawTradeoff();
    this.root.dispatchEvent(new CustomEvent("rank-drawn", { bubbles: true }));
  }

  drawRow(row) {
    this.stale.delete(row);
    if (row.built !== row.method) this.buildTracks(row);
    const { layer } = row;
    row.tracks.forEach((track, axis) => {
      const value = row.rank[axis];
      if (Number(track.input.value) !== value) track.input.value = value;
      track.kept.style.clipPath = `inset(0 ${100 - position(value, track.top)}% 0 0)`;
      const saved = row.dense ? 0 : 1 - cost(layer, { method: row.method, rank: row.rank }, "bytes") / layer.dense.bytes;
      track.input.setAttribute("aria-valuetext", row.dense
        ? `rank ${value} of ${track.top}, dense` : `rank ${value} of ${track.top}, saves ${percent(saved, 0)} of the bytes`);
    });
    row.element.classList.toggle("rb-dense", row.dense);
    row.element.classList.toggle("rb-selected", layer.name === this.selected);
    if (document.activeElement !== row.entry) row.entry.value = row.dense ? "dense" : row.rank.join(", ");
    const choice = row.dense ? null : { method: row.method, rank: row.rank };
    const share = cost(layer, choice, "bytes") / layer.dense.bytes - 1;
    row.saving.textContent = row.dense ? "–" : `${share > 0 ? "+" : "−"}${Math.abs(100 * share).toFixed(0)} %`;
    row.saving.classList.toggle("rb-worse", share > 0);
  }

  drawCost(quantity, total, choices, moved) {
    const { figure, note, chart } = this[quantity + "Card"];
    const dense = this.model.dense[quantity];
    figure.textContent = figures[quantity](total);
    const held = this.hold && this.hold.quantity === quantity ? ` · held at ${figures[quantity](this.hold.total)}` : "";
    note.textContent = `${percent(total / dense)} of dense ${figures[quantity](dense)}${held}`;
    const values = chart.values || (chart.values = new Array(this.model.layers.length));
    (moved || [...this.rows.values()]).forEach(row => {
      values[row.layer.index] = cost(row.layer, choices[row.layer.name] || null, quantity);
    });
    const ceiling = chart.ceiling || (chart.ceiling = this.grouped(this.model.layers.map(l => l.dense[quantity])));
    this.bars(chart, values, ceiling, total / dense, quantity, this.hold && this.hold.quantity === quantity
      ? this.hold.total / dense : null, moved);
  }

  drawAccuracy(touched = null, choices = this.choices(), predicted = predict(this.model, choices)) {
    const { figure, note, chart } = this.accuracyCard;
    const { model } = this;
    const fresh = this.isMeasured();
    const dense = model.metric.dense;
    const unit = model.metric.share ? " points" : "";
    let state, value;
    if (fresh) {
      state = this.measuring ? "measuring" : "measured";
      value = this.score.value;
      figure.textContent = scoreText(model, value);
      const s = this.score;
      const half = s.drop_low === null ? "" : ` (95 %: ${[s.drop_low, s.drop_high].map(d => against(model, d)).sort((a, b) => a - b).map(v => signed(model, v)).join(" to ")})`;
      const plain = this.plain ? ` · without correction ${scoreText(model, this.plain.value)}` : "";
      const verdict = s.within === null || s.within === undefined ? "" : s.within ? "within tolerance · " : "⚠ beyond tolerance · ";
      note.textContent = `${verdict}${state} · ${signed(model, against(model, s.drop))}${unit} against dense${half} · ${s.samples || "all"} samples${plain}`;
    } else {
      state = predicted.rough ? "rough" : "predicted";
      value = predicted.value;
      const drop = value === null || dense === null ? null : (dense - value) * (model.metric.higher ? 1 : -1);
      const reach = model.metric.share ? 0.06 : Math.abs(dense) / 2;
      const far = drop !== null && drop > reach;
      const limit = `${model.metric.higher ? "<" : ">"} ${scoreText(model, dense + against(model, reach))}`;
      figure.textContent = value === null ? "…" : far ? limit : `≈ ${scoreText(model, value)}`;
      const word = state === "rough" ? "rough estimate" : model.metric.share ? "predicted ± 1 point" : "predicted";
      note.textContent = value === null ? "not measured yet"
        : far ? `${word} · ${model.metric.share ? "more than 6 points lost" : "more than half as much again lost"}`
        : `${word} · ${signed(model, against(model, drop))}${unit} against dense`;
      if (state === "rough" && this.learning) note.textContent += ` · learning the layers: ${this.learning}`;
      if (this.measuring && !this.dragging) note.textContent += ` · ${this.doing || "measuring"}…`;
    }
    figure.dataset.state = state;
    figure.classList.toggle("rb-unsure", !fresh);
    const losses = chart.values || (chart.values = new Array(model.layers.length).fill(0));
    for (const row of touched || this.rows.values()) {
      const choice = choices[row.layer.name] || null;
      const alone = choice ? afterNoise(model, change(model, row.layer, choice)) : null;
      losses[row.layer.index] = alone === null || dense === null ? 0 : Math.max(0, (model.metric.higher ? 1 : -1) * (dense - alone));
    }
    const part = v => v === null || !dense || !v ? null : model.metric.higher ? v / dense : dense / v;
    const scale = Math.max(0, Math.min(1.05, part(value) || 0));
    this.bars(chart, losses, null, scale, "accuracy", fresh ? part(predicted.value) : null, touched);
  }

  /* Sums of neighbours, where there are more layers than a chart has room for bars. */
  grouped(values) {
    if (this.group === 1) return values;
    const sums = new Array(Math.ceil(values.length / this.group)).fill(0);
    values.forEach((value, i) => { sums[this.bar(i)] += value; });
    return sums;
  }

  bar(index) { return Math.floor(index / this.group); }

  /* One chart: above, the total against dense with a tick for budget or prediction; below, layer by layer. */
  bars(chart, each, ceiling, share, kind, tick, moved) {
    const colours = this.colours;
    const layers = this.model.layers, values = this.grouped(each), chosen = this.rows.get(this.selected);
    const index = values.map((_, i) => i);
    const marker = index.map(i => chosen && i === this.bar(chosen.layer.index) ? colours.accent : colours.primary);
    const ticks = tick === null ? [null] : [tick];
    if (!chart.drawn) {
      const names = index.map(i => {
        const first = layers[i * this.group].name, last = layers[Math.min(layers.length, (i + 1) * this.group) - 1].name;
        return first === last ? first : `${first} to ${last}`;
      });
      const axis = { fixedrange: true, zeroline: false, showgrid: false, showticklabels: false };
      const unit = kind === "accuracy" ? "%{y:.4f} lost alone" : "%{y:,} " + kind;
      const traces = [
        { type: "bar", orientation: "h", x: [share], y: [0], marker: { color: colours.primary }, hoverinfo: "skip", width: 0.9 },
        { type: "scatter", x: ticks, y: [0], mode: "markers", hoverinfo: "skip",
          marker: { symbol: "line-ns", size: 14, line: { width: 3, color: colours.text } } },
        { type: "bar", x: index, y: values, xaxis: "x2", yaxis: "y2", customdata: names, marker: { color: marker },
          hovertemplate: `%{customdata}<br>${unit}<extra></extra>` },
        { type: "bar", x: index, y: ceiling || [], xaxis: "x2", yaxis: "y2", marker: { color: colours.faint }, hoverinfo: "skip" },
      ];
      window.Plotly.newPlot(chart, [traces[0], traces[1], traces[3], traces[2]], {
        height: 128, margin: { l: 34, r: 4, t: 2, b: 4 }, showlegend: false, barmode: "overlay", bargap: 0.15,
        paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: colours.muted, size: 10, family: colours.font },
        xaxis: { ...axis, domain: [0, 1], range: [0, kind === "accuracy" ? 1.02 : Math.max(1.02, share)] },
        yaxis: { ...axis, domain: [0.86, 1], range: [-0.5, 0.5] },
        xaxis2: { ...axis, anchor: "y2", range: [-0.6, values.length - 0.4] },
        yaxis2: { ...axis, anchor: "x2", domain: [0, 0.76], showticklabels: true, nticks: 3, rangemode: "tozero",
          autorange: false, range: [0, ceiling ? 1.05 * Math.max(...ceiling, 1) : this.lossRange(values)], tickformat: kind !== "accuracy" ? ".2s" : this.model.metric.share ? ".1%" : ".3~g" },
        shapes: [{ type: "rect", xref: "x", yref: "y", x0: 0, x1: 1, y0: -0.45, y1: 0.45, line: { width: 0 },
          fillcolor: colours.faint, layer: "below" }],
      }, { displayModeBar: false, responsive: true });
      chart.drawn = true;
      if (kind !== "accuracy") chart.on("plotly_click", event => {
        const { customdata, x } = event.points[0];
        if (customdata) this.select(layers[x * this.group].name);
      });
      return;
    }
    if (this.dragging && moved && this.moveBars(chart, values, moved, share, kind)) return;
    const top = ceiling ? chart._fullLayout.yaxis2.range[1] : this.lossRange(values);
    window.Plotly.update(chart, { x: [[share], ticks, chart.data[2].x, chart.data[3].x], y: [[0], [0], chart.data[2].y, values],
      "marker.color": [colours.primary, undefined, colours.faint, marker] }, { "yaxis2.range": [0, top] });
  }

  /* What is lost alone, as far as it can be told: 5 points, of other scores a quarter of the dense one. */
  lossRange(values) {
    const { share, dense } = this.model.metric, most = share ? 0.05 : Math.abs(dense || 1) / 4;
    return 1.25 * Math.min(most, Math.max(most * 0.08, ...values));
  }

  /* While a thumb moves, only the bars that change are moved, in the picture Plotly drew and in its data; a full redraw
     of three charts would cost more than a frame. The next full update settles everything else (hover, colours). */
  moveBars(chart, values, moved, share, kind) {
    const full = chart._fullLayout;
    const total = chart.querySelector(".subplot.xy .barlayer .point path");
    const points = chart.querySelectorAll(".subplot.x2y2 .barlayer .trace:last-child .point path");
    if (!full || !total || points.length !== values.length) return false;
    const { xaxis, yaxis, xaxis2, yaxis2 } = full;
    const box = (x0, y0, x1, y1) => `M${x0},${y0}V${y1}H${x1}V${y0}Z`;
    chart.data[0].x[0] = share;
    total.setAttribute("d", box(0, yaxis.c2p(-0.45, true), xaxis.c2p(share, true), yaxis.c2p(0.45, true)));
    for (const i of new Set(moved.map(row => this.bar(row.layer.index)))) {
      points[i].setAttribute("d", box(xaxis2.c2p(i - 0.425, true), yaxis2.c2p(0, true), xaxis2.c2p(i + 0.425, true), yaxis2.c2p(values[i], true)));
    }
    if (kind === "accuracy") chart.querySelectorAll(".subplot.xy .scatterlayer .point").forEach(p => { p.style.visibility = "hidden"; });
    return true;
  }

  drawDetail() {
    const row = this.rows.get(this.selected);
    if (!row) return;
    const { layer } = row, method = layer.methods[row.method];
    const choice = row.dense ? null : { method: row.method, rank: row.rank };
    const key = layer.name + row.method;
    if (this.detailOf !== key) {
      this.detailOf = key;
      this.detailTitle.textContent = `${layer.name} · ${layer.shape}`;
      this.methodSelect.replaceChildren(...Object.entries(layer.methods).map(([name, m]) =>
        node("option", { value: name, title: m.label }, m.label)), node("option", { value: "dense" }, "Dense"));
      clearTimeout(this.plotting);
      if (this.dragging) this.plotting = setTimeout(() => { this.plotDetail(row, method); this.placeMarks(row, method); }, 60);
      else this.plotDetail(row, method);
    }
    this.methodSelect.value = row.dense ? "dense" : row.method;
    const e = Math.sqrt(errorSquared(layer, choice));
    const facts = [`rank ${row.dense ? "–" : row.rank.join(", ")} of ${method.top.join(", ")}`,
      `weight error ${percent(e)}`, `energy kept ${percent(1 - e * e)}`];
    const even = QUANTITIES.map(q => method.even[q].join(", "));
    facts.push(even[0] === even[1] ? `break-even ${even[0]}` : `break-even ${even[0]} (bytes), ${even[1]} (multiplies)`);
    if (method.latency && method.latency.even)
      facts.push(method.latency.even[0] ? `${method.latency.even.join(", ")} (latency)` : "never faster than dense here");
    if (method.latency && choice && method.latency.dominated.some(rank => rank.join() === choice.rank.join()))
      facts.push("slower than a larger rank");
    const rate = this.exchange(row);
    if (rate) facts.push(rate);
    this.detailFacts.textContent = facts.join(" · ");
    this.placeMarks(row, method);
  }

  /* Accuracy points per kB and per million multiplies, for the next step down. */
  exchange(row) {
    const { model } = this, { layer } = row;
    if (row.dense || !model.metric.share) return "";
    const method = layer.methods[row.method];
    const step = row.rank.map((r, i) => Math.max(1, r - Math.max(1, Math.round(method.top[i] / 20))));
    const here = { method: row.method, rank: row.rank }, below = { method: row.method, rank: step };
    const lost = 100 * (lookUp(model, change(model, layer, here)) - lookUp(model, change(model, layer, below)));
    const rate = (q, unit) => {
      const saved = cost(layer, here, q) - cost(layer, below, q);
      return saved > 0 ? (lost / (saved / unit)).toFixed(3) : "–";
    };
    return `next step down: ${rate("bytes", 1e3)} points per kB, ${rate("multiplies", 1e6)} per M multiplies`;
  }

  plotDetail(row, method) {
    const colours = this.colours;
    const traces = [];
    const dash = ["solid", "dot"];
    tailsOf(row.layer, row.method).forEach((tail, axis) => {
      const label = method.axes.length > 1 ? ` (${method.axes[axis]})` : "";
      traces.push({ x: tail.sigma_ranks, y: tail.sigma, mode: "lines", name: "σ" + label, line: { color: colours.primary, width: 2, dash: dash[axis] },
        hovertemplate: `σ%{x} = %{y:.3g}${label}<extra></extra>` });
      traces.push({ x: tail.ranks.slice(1), y: tail.lost.slice(1).map(l => 100 * (1 - l)), mode: "lines", name: "energy" + label, yaxis: "y2",
        line: { color: colours.energy, width: 2, dash: dash[axis] }, hovertemplate: `rank %{x}: %{y:.1f} % energy${label}<extra></extra>` });
    });
    const longest = Math.max(...method.top);
    const axis = { gridcolor: colours.faint, zeroline: false, fixedrange: true, linecolor: colours.faint };
    if (row !== this.rows.get(this.selected)) return;
    window.Plotly.react(this.detailChart, traces, {
      height: 210, margin: { l: 48, r: 8, t: 6, b: 34 }, showlegend: false, hovermode: "x", paper_bgcolor: "transparent",
      plot_bgcolor: "transparent", font: { color: colours.muted, size: 11, family: colours.font },
      xaxis: { ...axis, anchor: "y2", title: { text: "rank", standoff: 4 }, range: [0, longest * 1.02] },
      yaxis: { ...axis, type: "log", domain: [0.5, 1], title: { text: "σ (log)" }, exponentformat: "power", nticks: 4 },
      yaxis2: { ...axis, domain: [0, 0.44], title: { text: "energy %" }, range: [0, 104], nticks: 4 },
    }, { displayModeBar: false, responsive: true });
    if (!this.detailChart.bound) {
      this.detailChart.bound = true;
      this.detailChart.style.position = "relative";
      this.detailChart.addEventListener("click", event => {
        const full = this.detailChart._fullLayout;
        if (!full) return;
        const x = event.clientX - this.detailChart.getBoundingClientRect().left - full.xaxis._offset;
        if (x < 0 || x > full.xaxis._length) return;
        const target = this.rows.get(this.selected);
        const top = target.layer.methods[target.method].top;
        const rank = Math.max(1, Math.round(full.xaxis.p2l(x)));
        this.newGesture();
        this.setRank(target, top.map(m => top.length === 1 ? rank : Math.round(rank / Math.max(...top) * m)));
        this.commit();
        this.draw(true);
      });
      new ResizeObserver(() => requestAnimationFrame(() => this.drawDetail())).observe(this.detailChart);
    }
  }

  placeMarks(row, method) {
    const full = this.detailChart._fullLayout;
    if (!full || !full.xaxis) return;
    const marks = this.marks || (this.marks = ["chosen", "chosen", "bytes", "multiplies"].map(kind =>
      node("div", { class: `rb-mark rb-mark-${kind}`, "aria-hidden": "true" })));
    if (marks[0].parentNode !== this.detailChart) this.detailChart.append(...marks);
    const places = [row.dense ? null : row.rank[0], row.dense || row.rank.length < 2 ? null : row.rank[1],
      method.even.bytes[0] || null, method.even.multiplies[0] !== method.even.bytes[0] ? method.even.multiplies[0] || null : null];
    marks.forEach((mark, i) => {
      mark.hidden = places[i] === null;
      if (places[i] === null) return;
      mark.style.transform = `translateX(${full.xaxis._offset + full.xaxis.l2p(places[i])}px)`;
      mark.style.top = `${full._size.t}px`;
      mark.style.height = `${full._size.h}px`;
    });
  }

  /* -- trade-off -- */

  drawTradeoff() {
    if (!window.Plotly || !this.data) return;
    const colours = this.colours, { model, axis } = this;
    const uniform = (model.uniform || []).slice().sort((a, b) => a[axis] - b[axis]);
    const snapshots = (this.data.snapshots || []).filter(s => s.score !== null);
    const x = value => 100 * value / model.dense[axis];
    const y = value => model.metric.share ? 100 * value : value;
    const traces = [
      { x: uniform.map(u => x(u[axis])), y: uniform.map(u => y(u.score)), mode: "lines+markers", name: "uniform",
        line: { color: colours.muted, width: 1.5 }, marker: { size: 5 }, hovertemplate: "uniform: %{y:.4g} at %{x:.1f} %<extra></extra>" },
      { x: [100], y: [model.metric.dense === null ? null : y(model.metric.dense)], mode: "markers", name: "dense",
        marker: { color: colours.text, symbol: "square-open", size: 9 }, hovertemplate: "dense<extra></extra>" },
      { x: snapshots.map(s => x(s[axis])), y: snapshots.map(s => y(s.score)), mode: "markers+text", name: "snapshot",
        text: snapshots.map(s => s.name), textposition: "bottom center", customdata: snapshots.map(s => s.name), cliponaxis: false,
        marker: { color: colours.snapshot, symbol: "diamond", size: 11 }, hovertemplate: "%{customdata}: %{y:.4g} at %{x:.1f} %<extra>click restores</extra>" },
    ];
    const values = traces.flatMap(t => t.y).filter(v => v !== null && v !== undefined);
    const choices = this.choices(), predicted = predict(model, choices).value, now = this.nowScore(predicted);
    if (now !== null) values.push(y(now));
    const low = Math.min(...values, Infinity), high = Math.max(...values, -Infinity);
    const room = Math.max((high - low) * 0.12, 1e-3);
    const grid = { gridcolor: colours.faint, zeroline: false, fixedrange: true };
    window.Plotly.react(this.tradeoffChart, traces, {
      height: 200, margin: { l: 48, r: 10, t: 8, b: 36 }, showlegend: false, hovermode: "closest", paper_bgcolor: "transparent",
      plot_bgcolor: "transparent", font: { color: colours.muted, size: 11, family: colours.font },
      xaxis: { ...grid, title: { text: `${axis}, % of dense`, standoff: 4 }, range: [0, 104] },
      yaxis: { ...grid, title: { text: model.metric.share ? "score %" : model.metric.higher ? "score" : "lower is better" },
        range: values.length ? [low - room, high + room] : undefined },
    }, { displayModeBar: false, responsive: true });
    if (!this.tradeoffChart.bound) {
      this.tradeoffChart.bound = true;
      this.tradeoffChart.style.position = "relative";
      this.tradeoffChart.on("plotly_click", event => {
        const name = event.points[0].customdata;
        if (name) this.act("restore", { name });
      });
      new ResizeObserver(() => requestAnimationFrame(() => this.moveTradeoff(totals(model, this.choices())))).observe(this.tradeoffChart);
    }
    this.moveTradeoff(totals(model, choices), predicted);
  }

  isMeasured() { return this.score && this.scoreRev === this.rev && !this.dragging; }

  nowScore(predicted) { return this.isMeasured() ? this.score.value : predicted; }

  moveTradeoff(now, predicted = predict(this.model, this.choices()).value) {
    const full = this.tradeoffChart._fullLayout;
    if (!full || !full.xaxis) return;
    const mark = this.nowMark || (this.nowMark = node("div", { class: "rb-now", title: "this plan" }));
    const ghost = this.ghostMark || (this.ghostMark = node("div", { class: "rb-now rb-ghost", title: "predicted" }));
    if (mark.parentNode !== this.tradeoffChart) this.tradeoffChart.append(ghost, mark);
    const place = (element, value) => {
      element.hidden = value === null;
      if (value === null) return;
      const [bottom, top] = full.yaxis.range;
      const shown = Math.min(top, Math.max(bottom, this.model.metric.share ? 100 * value : value));
      const left = full.xaxis._offset + full.xaxis.l2p(100 * now[this.axis] / this.model.dense[this.axis]);
      element.style.transform = `translate(${left}px, ${full.yaxis._offset + full.yaxis.l2p(shown)}px)`;
    };
    const measured = this.isMeasured();
    place(mark, this.nowScore(predicted));
    place(ghost, measured ? predicted : null);
    mark.classList.toggle("rb-unsure", !measured);
  }

  drawSnapshots() {
    const { model } = this;
    this.snapshotList.replaceChildren(...(this.data.snapshots || []).map(s => node("li", {},
      node("button", { type: "button", title: "Restore this plan", onclick: () => this.act("restore", { name: s.name }) }, s.name),
      node("span", {}, `${s.score === null ? "not measured" : scoreText(model, s.score)} · ${figures.bytes(s.bytes)} · ${figures.multiplies(s.multiplies)}`),
      node("button", { type: "button", class: "rb-remove", "aria-label": `Remove snapshot ${s.name}`, title: "Remove",
        onclick: () => this.act("remove", { name: s.name }) }, "×"))));
  }

  /* What differs between two snapshots, or one and the plan as it stands. */
  drawDifference() {
    const plans = new Map((this.data.snapshots || []).map(s => [s.name, s.choices]));
    this.difference.hidden = plans.size === 0;
    const fill = (select, names, first) => {
      const kept = names.includes(select.value) ? select.value : first;
      select.replaceChildren(...names.map(name => node("option", { value: name }, name)));
      select.value = kept;
    };
    const names = [...plans.keys()];
    fill(this.differenceFrom, names, names[0]);
    fill(this.differenceTo, ["this plan", ...names], "this plan");
    if (this.difference.hidden) return;
    const from = plans.get(this.differenceFrom.value);
    const to = this.differenceTo.value === "this plan" ? this.choices() : plans.get(this.differenceTo.value);
    const say = (layer, choice) => choice ? `${layer.methods[choice.method] ? layer.methods[choice.method].label : choice.method} ${choice.rank.join(", ")}` : "dense";
    const rows = this.model.layers.map(layer => [layer.name, say(layer, from[layer.name]), say(layer, to[layer.name])])
      .filter(([, a, b]) => a !== b);
    const before = totals(this.model, from), after = totals(this.model, to);
    const delta = q => { const d = after[q] - before[q]; return (d < 0 ? "−" : "+") + figures[q](Math.abs(d)); };
    this.differenceList.replaceChildren(
      node("li", {}, rows.length ? `${delta("bytes")}, ${delta("multiplies")} multiplies` : "no difference"),
      ...rows.map(([name, a, b]) => node("li", {}, `${name}: ${a} → ${b}`)));
  }

  /* -- colours follow Streamlit's theme -- */

  palette() {
    const style = getComputedStyle(this.root);
    const read = (name, fallback) => style.getPropertyValue(name).trim() || fallback;
    const background = read("--st-background-color", "#ffffff");
    if (this.background === background) return;
    this.background = background;
    const dark = luminance(background) < 0.4;
    this.root.firstElementChild.classList.toggle("rb-dark", dark);
    this.colours = {
      primary: read("--st-primary-color", dark ? "#56B4E9" : "#0072B2"),
      accent: dark ? "#E6EAEF" : "#1D2733",
      text: read("--st-text-color", dark ? "#eee" : "#222"),
      muted: dark ? "#B4BEC9" : "#55606C",
      faint: dark ? "rgba(255,255,255,.12)" : "rgba(20,40,60,.10)",
      energy: dark ? "#2BC79A" : "#009E73",
      snapshot: "#CC79A7",
      font: read("--st-font", "sans-serif"),
    };
    for (const kind of ["accuracy", ...QUANTITIES]) this[kind + "Card"].chart.drawn = false;
    this.detailOf = null;
    if (this.data) this.draw(true);
  }
}

function luminance(colour) {
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = colour;
  const hex = probe.fillStyle;
  const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/* How the score itself moves when so much is lost. */
function against(model, drop) { return model.metric.higher ? -drop : drop; }

function signed(model, value) {
  const shown = model.metric.share ? 100 * value : value;
  return (shown >= 0 ? "+" : "−") + Math.abs(shown).toFixed(2);
}

/* Where a rank stands on its track, in percent; the thumb is 10 px wide and the track leaves 5 px at both ends. */
function position(rank, top) { return top > 1 ? 100 * (rank - 1) / (top - 1) : 100; }

/* The track is the spectrum: height follows the log of the energy that is still missing. */
function silhouette(tail, top) {
  const least = Math.min(...tail.lost.filter((lost, i) => lost > 1e-9 && tail.ranks[i] < top), 0.9);
  const height = lost => Math.min(1, Math.log(Math.max(lost, 1e-12)) / Math.log(least));
  const points = tail.ranks.filter(r => r >= 1).map((r, i) => {
    const lost = tail.lost[i + (tail.ranks[0] === 0 ? 1 : 0)];
    return `${position(r, top).toFixed(2)}% ${(100 * (0.08 + 0.84 * height(lost))).toFixed(1)}%`;
  });
  return `polygon(0% 100%, ${points.join(", ")}, 100% 100%)`;
}

function energyRank(tail, top, keep) {
  let low = 1, high = top;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (between(tail.ranks, tail.lost, middle) <= 1 - keep + 1e-12) high = middle; else low = middle + 1;
  }
  return low;
}

/* ---- mounting ---------------------------------------------------------------------------------------------------- */

const models = {};
function setModel(model) { models[model.key] = model; window.dispatchEvent(new Event("rank-model")); }

function mount(root, data, send) {
  const model = models[data.model];
  if (!model || !window.Plotly) {
    root.__pending = () => mount(root, data, send);
    if (!root.__waiting) {
      root.__waiting = true;
      root.textContent = "Loading the board…";
      for (const name of ["rank-model", "plotly-ready"]) window.addEventListener(name, () => root.__pending && root.__pending());
    }
    return;
  }
  root.__pending = null;
  if (!root.__board || root.__board.model.key !== model.key) {
    if (root.__board) root.__board.leave();
    root.__board = new Board(root, model, send);
  }
  root.__board.send = send;
  root.__board.live();
  root.__board.update(data);
  if (window.__rankFeed) root.__board.feed(window.__rankFeed);
}

window.RankBoard = { setModel, mount, cost, totals, predict, change, models };
window.dispatchEvent(new Event("rank-model"));
})();
