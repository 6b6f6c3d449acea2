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

const NAME_END = 7;                                              // letters of a name that stay where it is cut in its middle

const HELP = {
  device: "Beside a device: flash is parameters and buffers, tied ones once, as on Compare; RAM is the activations that live at one time, a lower bound, for a runtime adds scratch space.",
  multiples: "Ranks that are multiples of the vector width run faster. The front keeps to them, too.",
  hold: "Drag one layer, and the other unlocked layers give way, so that the total stays.",
  scale: `Tracks of ${LOG_FROM} ranks and more are logarithmic by themselves; “1 to break-even” leaves out the ranks that cost more than dense.`,
  tolerance: "Stop measuring as soon as it is clear whether the drop is within this.",
  suggested: "Where spectra bend: each layer at its notch.",
  notch: "Where singular values fall to the noise in one step, or else the rank that keeps 90 % of their energy. A layer whose notch would save next to nothing starts dense. A double click on a track goes there.",
  keys: "Arrows move a thumb by one step, Page keys by ten; Shift slows a drag; a double click goes to the notch. Ctrl+Z takes back; ? lists all keys.",
  entry: "Type a rank; Tucker-2 takes two, as in 16, 12.",
  block: "A block's slider sets its unlocked layers to the same share of their break-even rank, and stands at the share they have in the mean.",
  method: "How this layer is factorised.",
  lock: "Presets, blocks and the budget lock leave a locked layer alone.",
  order: "Rows stay where they are while ranks change, until they are sorted again.",
  several: "Shift+click on a name, or Shift with the arrows up and down, marks a range of layers, Ctrl+click one more: a bar sets them all at once.",
};

Object.assign(Board.prototype, {
  build() {
    const { model } = this;
    this.status = node("p", { class: "rb-status", role: "status", "aria-live": "polite" });
    const cards = node("div", { class: "rb-cards" },
      this.buildCard("accuracy", model.metric.label, model.help.interval),
      this.buildCard("bytes", "Weights", model.help.bytes),
      this.buildCard("multiplies", "Multiplies", model.help.multiplies));
    const front = this.buildFront();
    const inner = node("div", { class: "rb" }, this.buildToolbar(), cards,
        this.line = node("div", { class: "rb-line", "aria-hidden": "true" }),
        node("div", { class: "rb-beneath" }, front, this.buildPanels(this.buildTable("The charts as a table", () => this.layerRows()))),
        node("div", { class: "rb-main" }, this.buildLayers(), this.buildSide()),
        this.status);
    this.root.replaceChildren(inner);
    new IntersectionObserver(([seen]) => inner.classList.toggle("rb-away", !seen.isIntersecting), { rootMargin: "-60px 0px 0px" }).observe(cards);
  },

  buildToolbar() {
    const button = (text, help, action, extra = {}) =>
      node("button", { type: "button", title: help, onclick: action, ...extra }, text);
    const check = (label, help, onchange) => {
      const box = node("input", { type: "checkbox", "aria-label": label, onchange: event => onchange(event.target.checked) });
      return [box, node("label", { class: "rb-check", title: help }, box, label)];
    };
    const { help } = this.model;
    this.undoButton = button("Undo", "Take back the last change (Ctrl+Z)", () => this.act("undo"));
    this.redoButton = button("Redo", "Do it again (Ctrl+Shift+Z)", () => this.act("redo"));
    this.presetSelect = node("select", {
      "aria-label": "Preset", title: help.break_even,
      onchange: event => { this.preset(event.target.value); event.target.value = ""; },
    }, node("option", { value: "" }, "Preset…"));
    for (const [value, text] of [
      ["share:0.75", "75 % of break-even"], ["share:0.5", "50 % of break-even"], ["share:0.25", "25 % of break-even"],
      ["energy:0.99", "Energy ≥ 99 %"], ["energy:0.9", "Energy ≥ 90 %"], ["energy:0.8", "Energy ≥ 80 %"],
      ["suggested", "Where spectra bend"],
    ]) this.presetSelect.append(node("option", { value }, text));
    this.snapSelect = node("select", {
      "aria-label": "Snap ranks to multiples", title: HELP.multiples,
      onchange: event => {
        this.multiple = Number(event.target.value);
        this.reckonFront();
      },
    }, ...[1, 4, 8, 16].map(k => node("option", { value: k }, k === 1 ? "Any rank" : `Multiples of ${k}`)));
    this.holdSelect = node("select", {
      "aria-label": "Budget lock", title: HELP.hold,
      onchange: event => this.setHold(event.target.value || null),
    }, node("option", { value: "" }, "No budget lock"), node("option", { value: "bytes" }, "Hold bytes"),
      node("option", { value: "multiplies" }, "Hold multiplies"));
    this.scaleSelect = node("select", {
      "aria-label": "Scale of the tracks", title: HELP.scale,
      onchange: event => {
        this.scale = event.target.value;
        for (const row of this.rows.values()) { row.built = null; this.dirty.add(row); }
        this.draw(true);
      },
    }, node("option", { value: "" }, "Scale by size"), node("option", { value: "linear" }, "Linear"),
      node("option", { value: "log" }, "Logarithmic"), node("option", { value: "zoom" }, "1 to break-even"));
    let correction, free;
    [this.correctBox, correction] = check("Correction", help.correction, on => {
      this.act("correct", { on });
      this.speak(`Correction ${on ? "on" : "off"}.`);
    });
    [this.freeBox, free] = check("Free ranks", help.free_ranks, on => this.setFree(on));
    this.toleranceSelect = node("select", { "aria-label": "Tolerance", title: HELP.tolerance,
      onchange: event => {
        this.act("tolerate", { drop: event.target.value ? Number(event.target.value) : null });
        this.speak(`${event.target.selectedOptions[0].text}.`);
      } },
      node("option", { value: "" }, "Measure all"),
      ...[0.005, 0.01, 0.02, 0.05].map(d => node("option", { value: d }, `Tolerate ${100 * d} ${d === 0.01 ? "point" : "points"}`)));
    this.toleranceSelect.hidden = !this.model.metric.share;
    this.filter = node("input", {
      type: "search", placeholder: "Filter layers", "aria-label": "Filter layers", oninput: () => this.applyFilter(),
    });
    const group = (label, says, ...tools) => node("div", { class: "rb-tools", role: "group", "aria-label": label },
      node("span", { class: "rb-tools-name" }, node("span", { "aria-hidden": "true" }, label), ...(says.length ? this.explained(label, says) : [])), node("div", { class: "rb-tools-row" }, ...tools));
    return node("div", { class: "rb-toolbar", role: "toolbar", "aria-label": "Plan" },
      group("Changes", [], this.undoButton, this.redoButton),
      group("Set all layers", [`Presets: ${help.break_even}`, HELP.suggested],
        button("All dense", "Every layer as it was trained", () => this.preset("dense")), this.presetSelect),
      group("Thumbs", [`Multiples: ${HELP.multiples}`, `Budget lock: ${HELP.hold}`, `Scale: ${HELP.scale}`, HELP.block, HELP.entry, HELP.keys],
        this.snapSelect, this.holdSelect, this.scaleSelect),
      group("Measured", [`Correction: ${help.correction}`, `Free ranks: ${help.free_ranks}`, `Tolerance: ${HELP.tolerance}`],
        correction, free, this.toleranceSelect),
      group("Layers", [HELP.order, HELP.several, `Lock: ${HELP.lock}`], this.filter, ...this.buildOrder()));
  },

  /* A button that opens what there is to say, for every hand: by mouse, finger and keyboard. [button, what it opens] */
  explained(label, says, text = "?") {
    const id = `rb-tip-${this.tips = (this.tips || 0) + 1}`, symbol = text === "?";
    return [
      node("button", { type: "button", class: symbol ? "rb-help" : "rb-term", popovertarget: id, "aria-label": symbol ? `Help: ${label}` : null }, text),
      node("div", { id, class: "rb-tip", popover: "auto" }, ...says.map(line => node("p", {}, line))),
    ];
  },

  buildCard(kind, label, help) {
    const figure = node("output", { class: "rb-figure", "data-testid": `live-${kind}`, "aria-label": label }, "…");
    const note = node("p", { class: "rb-note" });
    const chart = node("div", {
      class: "rb-chart", "data-testid": `chart-${kind}`, role: "img", "aria-label": `${label}, in total and layer by layer`,
    });
    const [remarks, remarksSay] = this.explained("what the correction met", [], "");
    this[kind + "Card"] = { figure, note, chart, remarks, remarksSay };
    remarks.hidden = true;
    const about = kind === "accuracy" ? [remarks, remarksSay] : [];
    return node("section", { class: "rb-card", "aria-label": label },
      node("div", { class: "rb-card-head" }, node("h3", { "aria-level": "2" }, label),
        ...this.explained(label, [help, ...(kind === "bytes" ? [HELP.device] : [])]), ...about),
      figure, note, ...this.buildGoals(kind), chart);
  },

  buildLayers() {
    const blocks = [];
    for (const layer of this.model.layers) {
      const last = blocks[blocks.length - 1];
      if (last && last.block === layer.block) last.layers.push(layer); else blocks.push({ block: layer.block, layers: [layer] });
    }
    const list = this.list = node("div", { class: "rb-layers", role: "group", "aria-label": "Ranks, layer by layer" });
    list.append(node("p", { class: "rb-legend" }, "Each track is a layer's spectrum, filled up to its ",
      ...this.explained("rank", [this.model.help.rank], "rank"), "; lines mark ", ...this.explained("break-even", [this.model.help.break_even], "break-even"),
      " (dashed in bytes, dotted in multiplies), from where it stays dense, as in the original network.", this.latencyLegend = node("span", { hidden: true },
        " A solid line marks break-even in measured time, a dot a rank slower than a larger one."),
      " A ", ...this.explained("notch", [HELP.notch], "notch"), " marks the rank that the spectrum suggests; a new plan starts from the notches."
      + " On the right: rank and bytes saved."));
    list.append(this.buildSkip(), this.buildMany());
    this.groups = blocks.map(({ block, layers }) => {
      const runs = blocks.filter(other => other.block === block).length, last = layers[layers.length - 1];
      const name = runs === 1 ? block : layers.length > 1 ? `${layers[0].leaf} to ${last.leaf}` : layers[0].leaf;
      return this.buildGroup(name, block, layers);
    });
    list.append(...this.groups.map(group => group.details), this.flat = node("div", { class: "rb-flat", hidden: true }));
    this.sequence = [...this.rows.values()];
    list.append(this.noHit = node("p", { class: "rb-none", hidden: true }));
    if (!this.model.layers.length) list.append(node("p", {}, "No layer of this network can be compressed; Model says why."));
    return list;
  },

  /* Layers whose slider stands at the share of break-even that they have in the mean. */
  buildShare(name, title) {
    const slider = node("input", { type: "range", min: 1, max: 100, step: 1, value: 100, class: "rb-group", "aria-label": `${name} group`, title });
    const group = { layers: [], slider, figure: node("span", { class: "rb-share" }), shown: () => group.share,
      rail: slider, input: slider, top: 100, log: false, share: 100 };
    this.follow(group);
    slider.addEventListener("input", () => this.dragGroup(group.layers, Number(slider.value) / 100));
    return group;
  },

  buildGroup(name, block, layers) {
    const group = this.buildShare(name, HELP.block);
    const rows = group.rowBox = node("div", { class: "rb-rows" }, ...layers.map(layer => this.buildRow(layer)));
    group.title = node("button", { type: "button", class: "rb-block", "aria-expanded": "true", title: block,
      onclick: () => this.unfold(group, rows.hidden) }, name);
    group.sums = node("span", { class: "rb-sums" });
    group.layers = layers;
    group.details = node("section", { class: "rb-details", "aria-label": name },
      node("div", { class: "rb-head" }, group.title, group.sums, group.slider, group.figure), rows);
    return group;
  },

  unfold(group, open) {
    group.rowBox.hidden = !open;
    group.title.setAttribute("aria-expanded", String(open));
  },

  buildRow(layer) {
    const row = { layer, method: layer.default, free: false, rank: null, dense: true, tracks: [] };
    row.lock = node("button", {
      type: "button", class: "rb-lock", "aria-pressed": "false", "aria-label": `Lock ${layer.name}`, tabindex: -1,
      title: `Lock: ${HELP.lock}`, onclick: () => this.toggleLock([row]),
    }, "" );
    row.name = node("button", {
      type: "button", class: "rb-name", title: `${layer.name} · ${layer.type} ${layer.shape}`, tabindex: -1,
      onclick: event => this.clickName(row, event),
    });
    this.writeName(row, layer.leaf);
    row.trackBox = node("div", { class: "rb-tracks" });
    row.entry = node("input", {
      type: "text", class: "rb-entry", inputmode: "numeric", "aria-label": `${layer.name} exact rank`,
      title: HELP.entry, size: 5, tabindex: -1, onchange: () => this.enter(row), onkeydown: event => this.leaveEntry(row, event),
    });
    row.saving = node("span", { class: "rb-saving" });
    row.refusal = node("p", { class: "rb-refusal", id: `rb-refusal-${layer.index}`, hidden: true });
    row.element = node("div", { class: "rb-row", "data-layer": layer.name }, row.lock, this.buildPin(row), row.name, row.trackBox, row.entry, row.saving, row.refusal);
    this.rows.set(layer.name, row);
    this.sight.observe(row.element);
    return row.element;
  },

  buildTracks(row) {
    const focused = row.tracks.some(track => track.input === document.activeElement);
    row.tracks = row.layer.methods[row.method].axes.map((axis, index) =>
      this.buildTrack(row, index, row.rank.length === 1 ? `${row.layer.name} rank` : `${row.layer.name} rank ${axis}`));
    row.tracks.slice(1).forEach(track => { track.input.tabIndex = -1; });      // Enter goes there
    row.trackBox.replaceChildren(...row.tracks.map(track => track.box));
    row.built = row.method;
    if (focused) row.tracks[0].input.focus({ preventScroll: true });
  },

  buildTrack(row, index, label) {
    const { layer } = row, method = layer.methods[row.method], top = this.topOf(row, index), log = this.isLog(top);
    const input = node("input", { type: "range", min: 1, max: top, step: 1, "aria-label": label }), rail = node("div", { class: "rb-rail" });
    const track = { row, axis: index + 1, input, rail, top, log, shown: () => Math.min(top, row.rank[index]) };
    this.follow(track);
    input.addEventListener("input", () => this.drag(row, index, Number(input.value)));
    input.addEventListener("dblclick", () => this.suggest(row));
    input.addEventListener("focus", () => this.select(layer.name));
    const fill = node("div", { class: "rb-fill" });
    const shape = silhouette(tailsOf(layer, row.method)[index], top, log);
    const back = node("div", { class: "rb-back" });
    for (const part of [back, fill]) part.style.clipPath = shape;
    track.kept = node("div", { class: "rb-kept" }, fill);
    const marks = [];
    const put = (rank, name, title, text = "") => {
      const mark = node("div", { class: name, title, "aria-hidden": "true" }, text);
      mark.style.left = `${position(rank, top, log)}%`;
      marks.push(mark);
    };
    for (const quantity of QUANTITIES) {
      const even = form(layer, row.method, row.free).even[quantity][index];
      if (even > 0 && even < top) put(even, `rb-even rb-even-${quantity}`, `break-even for ${quantity}: rank ${even}`);
    }
    this.latencyMarks(method, index, top, put);
    const suggested = suggestedRank(layer, row.method);
    if (suggested && suggested[index] <= top) put(suggested[index], "rb-notch", `the spectrum suggests rank ${suggested.join(", ")}`);
    for (let power = log ? 10 : top; power < top; power *= 10)
      put(power, "rb-tick", null, words.count(power).replace(/\.0+/, ""));
    rail.append(back, track.kept, ...marks, track.thumb = node("div", { class: "rb-thumb", hidden: !log }));
    track.box = node("div", { class: log ? "rb-track rb-log" : "rb-track" }, rail, input);
    return track;
  },

  /* Measured on Compare: from where a rank is no faster than dense, and ranks that a larger one beats in time. */
  latencyMarks(method, index, top, put) {
    const { latency } = method;
    if (!latency) return;
    for (const rank of latency.dominated) put(rank[index], "rb-dominated", `rank ${rank.join(", ")}: slower than a larger rank (${latency.runtime})`);
    const even = latency.even && latency.even[index];
    if (even > 0 && even < top) put(even, "rb-even rb-even-latency", `break-even for latency (${latency.runtime}): rank ${even}`);
  },

  buildSide() {
    this.detailTitle = node("h3", { class: "rb-detail-title", "aria-level": "2" });
    this.methodSelect = node("select", { "aria-label": "Method", title: HELP.method,
      onchange: event => this.setMethod(event.target.value) });
    this.detailFacts = node("p", { class: "rb-facts" });
    this.detailChart = node("div", { class: "rb-spectrum", "data-testid": "chart-spectrum", role: "img",
      "aria-label": "Singular values and energy of the selected layer; a click sets its rank" });
    this.large = node("div", { class: "rb-large" });
    this.detail = node("section", { class: "rb-panel rb-detail", "aria-label": "Selected layer" },
      node("div", { class: "rb-panel-head" }, this.detailTitle, this.methodSelect,
        node("button", { type: "button", class: "rb-close", "aria-label": "Close", onclick: () => this.detail.hidePopover() }, "×")),
      this.large, this.detailFacts, this.detailChart, this.buildTable("The spectrum as a table", () => this.spectrumRows()));
    this.axisSelect = node("select", { "aria-label": "Trade-off against", onchange: event => {
      this.axis = event.target.value; this.drawTradeoff(); } },
      node("option", { value: "multiplies" }, "multiplies"), node("option", { value: "bytes" }, "bytes"));
    this.tradeoffChart = node("div", { class: "rb-tradeoff", "data-testid": "chart-tradeoff", role: "img",
      "aria-label": "Score against cost; a click on a point of the front or on a measured plan adopts it, one on a snapshot restores it" });
    const pick = label => node("select", { "aria-label": label, onchange: () => this.drawDifference() });
    this.differenceFrom = pick("Compare");
    this.differenceTo = pick("With");
    this.differenceList = node("ul", { class: "rb-difference", "data-testid": "snapshot-difference" });
    this.difference = node("div", { hidden: true },
      node("div", { class: "rb-snap" }, node("label", {}, "Compare ", this.differenceFrom), node("label", {}, " with ", this.differenceTo)),
      this.differenceList);
    return node("div", { class: "rb-side" },
      this.detail,
      node("section", { class: "rb-panel", "aria-label": "Trade-off" },
        node("div", { class: "rb-panel-head" }, node("h3", { "aria-level": "2" }, "Score against"), this.axisSelect),
        this.tradeoffChart, this.buildTable("The chart as a table", () => this.tradeoffRows()), this.tradeoffKey = node("p", { class: "rb-key" }),
        ...this.buildSnapshots(), this.difference),
      this.buildHistory());
  },
});
