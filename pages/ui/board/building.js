/* What the board is made of: toolbar, cards, a row for every layer, and the panels beside them. */

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

Object.assign(Board.prototype, {
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
  },

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
  },

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
  },

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
      slider.addEventListener("pointerdown", event => this.press(event));
      const summary = node("summary", {}, node("span", { class: "rb-block" }, block), slider);
      slider.addEventListener("click", event => event.preventDefault());
      const details = node("details", { open: true, class: "rb-details" }, summary);
      for (const layer of layers) details.append(this.buildRow(layer));
      list.append(details);
      this.groups.push({ details, layers, slider });
    }
    if (!this.model.layers.length) list.append(node("p", {}, "No layer of this network can be compressed; Model says why."));
    return list;
  },

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
  },

  buildTracks(row) {
    const { layer } = row;
    const method = layer.methods[row.method];
    row.trackBox.replaceChildren();
    row.tracks = method.axes.map((axis, index) => {
      const top = method.top[index];
      const label = method.axes.length === 1 ? `${layer.name} rank` : `${layer.name} rank ${axis}`;
      const input = node("input", { type: "range", min: 1, max: top, step: 1, "aria-label": label });
      input.addEventListener("input", () => this.drag(row, index, Number(input.value)));
      input.addEventListener("pointerdown", event => this.press(event));
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
  },

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
  },

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
  },
});

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
