/* What is drawn once per animation frame: the rows that changed, and the three cards with their charts. Costs come from
   exact coefficients, and while a thumb moves only the bars that change are moved. */

const MOST_BARS = 240;                                           // of a chart: beyond it neighbours share a bar

/* A chart stays as wide as its place, whatever changes that: the window, the sidebar, a column that moves. */
function fitted(chart) {
  let width = chart.offsetWidth;
  new ResizeObserver(() => {
    if (!chart.offsetWidth || chart.offsetWidth === width) return;
    width = chart.offsetWidth;
    window.Plotly.Plots.resize(chart);
  }).observe(chart);
}

Object.assign(Board.prototype, {
  schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(false); });
  },

  draw(everything) {
    if (!window.Plotly) return;
    const moved = [...this.dirty];
    this.dirty.clear();
    for (const row of moved) this.stale.add(row);
    for (const row of this.stale)
      if (!this.dragging || !this.hidden.has(row)) this.drawRow(row);
    const choices = this.choices();
    const now = totals(this.model, choices), predicted = predict(this.model, choices);
    this.drawGoals(choices, now);
    for (const quantity of QUANTITIES) this.drawCost(quantity, now[quantity], choices, everything ? null : moved);
    this.drawAccuracy(everything ? null : moved, choices, predicted);
    this.drawGroups(moved);
    this.drawReadout(now, predicted);
    this.drawDetail();
    this.moveTradeoff(now, predicted);
    this.placeWalk(now);
    if (everything) { this.drawTradeoff(); this.drawOrder(); this.drawTables(); }
    this.drawPanels();
    this.root.dispatchEvent(new CustomEvent("rank-drawn", { bubbles: true }));
  },

  drawRow(row) {
    this.stale.delete(row);
    if (row.built !== row.method) this.buildTracks(row);
    const { layer } = row;
    row.tracks.forEach(track => this.drawTrack(track));
    if (this.largeOf === row.tracks) this.largeTracks.forEach(track => this.drawTrack(track));
    row.element.classList.toggle("rb-dense", row.dense);
    row.element.classList.toggle("rb-selected", layer.name === this.selected);
    if (document.activeElement !== row.entry) row.entry.value = row.dense ? "dense" : row.rank.join(", ");
    const share = cost(layer, row.dense ? null : row, "bytes") / layer.dense.bytes - 1;
    row.saving.textContent = row.dense ? "–" : `${share > 0 ? "+" : "−"}${fixed(Math.abs(100 * share), 0)} %`;
    row.saving.classList.toggle("rb-worse", share > 0);
  },

  drawTrack(track) {
    const { row } = track, { layer } = row, value = track.shown(), place = position(value, track.top, track.log);
    if (Number(track.input.value) !== value) track.input.value = value;
    track.kept.style.clipPath = `inset(0 ${100 - place}% 0 0)`;
    track.thumb.style.left = `${place}%`;
    const saved = row.dense ? 0 : 1 - cost(layer, row, "bytes") / layer.dense.bytes;
    track.input.setAttribute("aria-valuetext", row.dense
      ? `rank ${value} of ${track.top}, dense` : `rank ${value} of ${track.top}, saves ${words.percent(saved, 0)} of the bytes`);
  },

  drawCost(quantity, total, choices, moved) {
    const { figure, note, chart } = this[quantity + "Card"];
    const dense = this.model.dense[quantity];
    figure.textContent = words.quantity(quantity, total);
    const held = this.hold && this.hold.quantity === quantity ? ` · held at ${words.quantity(quantity, this.hold.total)}`
      + (total < 0.98 * this.hold.total ? `, nothing left to give: ${words.quantity(quantity, this.hold.total - total)} unused` : "") : "";
    note.textContent = `${words.share(total / dense)} of dense ${words.quantity(quantity, dense)}${quantity === "bytes" ? this.goals.own : ""}${held}`;
    const values = chart.values || (chart.values = new Array(this.model.layers.length));
    (moved || [...this.rows.values()]).forEach(row => {
      values[row.layer.index] = cost(row.layer, choices[row.layer.name] || null, quantity);
    });
    const ceiling = chart.ceiling || (chart.ceiling = this.grouped(this.model.layers.map(l => l.dense[quantity])));
    this.bars(chart, values, ceiling, total / dense, quantity, this.hold && this.hold.quantity === quantity
      ? this.hold.total / dense : null, moved);
  },

  /* What there is to know of the correction that the measured figure is with, opened by a button. */
  sayRemarks(remarks) {
    const { remarks: button, remarksSay } = this.accuracyCard;
    if (button.hidden === !remarks.length && remarksSay.childElementCount === remarks.length
      && remarks.every((line, i) => remarksSay.children[i].textContent === line)) return;
    button.hidden = !remarks.length;
    button.textContent = remarks.length ? "About the correction" : "";
    remarksSay.replaceChildren(...remarks.map(line => node("p", {}, line)));
  },

  drawAccuracy(touched = null, choices = this.choices(), predicted = predict(this.model, choices)) {
    const { figure, note, chart } = this.accuracyCard;
    const { model } = this;
    const answer = this.answered(choices), fresh = !answer && this.isMeasured();
    const dense = model.metric.dense;
    let state, value;
    if (answer) {
      state = "measuring";
      value = answer.score.value;
      figure.textContent = words.score(model, value);
      note.textContent = `measured · ${words.change(model, answer.score)} · ${words.whole(answer.score.samples)} samples`
        + `${answer.left_out ? ` · ${answer.left_out}` : ""}`;
    } else if (fresh) {
      state = this.measuring ? "measuring" : "measured";
      value = this.score.value;
      figure.textContent = words.score(model, value);
      const s = this.score;
      const fewer = this.plain && this.plain.samples !== s.samples ? ` on ${words.whole(this.plain.samples)} samples` : "";
      const plain = this.plain ? ` · without correction ${words.score(model, this.plain.value)}${fewer}` : "";
      const verdict = s.within === null || s.within === undefined ? "" : s.within ? "within tolerance · " : "⚠ beyond tolerance · ";
      const depth = this.depth ? ` · ${this.depth} correction` : "";
      note.textContent = `${verdict}${state} · ${words.change(model, s)} · ${s.samples ? words.whole(s.samples) : "all"} samples${depth}${plain}`;
    } else {
      state = predicted.rough ? "rough" : "predicted";
      value = predicted.value;
      figure.textContent = value === null ? "…" : words.range(model, predicted);
      const word = state === "rough" ? "rough estimate" : "predicted";
      note.textContent = value === null ? "not measured yet"
        : `${word}, 9 plans of 10 lie inside · most likely ${words.score(model, value)}`;
      if (state === "rough" && this.learning) note.textContent += ` · learning the layers: ${this.learning}`;
      if (this.dragging && this.tooSlow) note.textContent += ` · measured when you let go: ${this.tooSlow}`;
      if (this.measuring && !this.dragging) note.textContent += ` · ${this.doing || "measuring"}…`;
    }
    this.sayRemarks(fresh ? this.remarks : []);
    const shown = answer ? answer.score : fresh ? this.score : null;
    figure.dataset.state = state;
    for (const end of ["low", "high"]) {
      if (shown || predicted[end] === null) delete figure.dataset[end]; else figure.dataset[end] = predicted[end];
    }
    figure.dataset.kind = shown ? "measured" : "predicted";
    if (shown) figure.dataset.samples = shown.samples; else delete figure.dataset.samples;
    figure.classList.toggle("rb-unsure", !shown);
    if (shown) this.drawFloor(value, value, value); else this.drawFloor(value, predicted.low, predicted.high);
    this.line.textContent = ["accuracy", ...QUANTITIES].map(kind => this.isBroken(kind) + this[kind + "Card"].figure.textContent).join("  ·  ");
    const losses = chart.values || (chart.values = new Array(model.layers.length).fill(0));
    for (const { layer } of touched || this.rows.values()) losses[layer.index] = lossAlone(model, layer, choices[layer.name] || null);
    const part = (v, whole) => v === null || !whole || !v ? null : model.metric.higher ? v / whole : whole / v;
    const scale = Math.max(0, Math.min(1.05, part(value, shown ? shown.dense : dense) || 0));   // on the same samples
    const sum = losses.reduce((a, b) => a + b, 0), base = shown ? shown.dense : dense;      // what is lost, shared out
    const lost = value === null || base === null ? 0 : Math.max(0, against(model, value - base));
    const shares = sum > 0 ? losses.map(alone => alone * lost / sum) : losses;
    chart.classList.toggle("rb-no-loss", value !== null && !shares.some(share => share > 0));
    chart.shown = shares;
    this.bars(chart, shares, null, scale, "accuracy", shown ? part(predicted.value, dense) : null, touched);
    this.drawBand(chart, shown || value === null ? null : [predicted.low, predicted.high].map(end => part(end, dense) || 0));
  },

  /* On the bar of the total, where the score is predicted to lie. */
  drawBand(chart, ends) {
    const full = chart._fullLayout, band = this.scoreBand || (this.scoreBand = node("div", { class: "rb-band" }));
    band.hidden = !ends || !full || !full.xaxis;
    if (band.hidden) return;
    const inside = chart.querySelector(".svg-container");
    if (band.parentNode !== inside) inside.append(band);
    const { xaxis, yaxis } = full, [left, right] = ends.map(end => xaxis.l2p(Math.min(1.02, Math.max(0, end)))).sort((a, b) => a - b);
    Object.assign(band.style, { left: `${xaxis._offset + left}px`, width: `${Math.max(2, right - left)}px`,
      top: `${yaxis._offset + yaxis.l2p(0.45)}px`, height: `${yaxis.l2p(-0.45) - yaxis.l2p(0.45)}px` });
  },

  /* Sums of neighbours, where there are more layers than a chart has room for bars. */
  grouped(values) {
    if (this.group === 1) return values;
    const sums = new Array(Math.ceil(values.length / this.group)).fill(0);
    values.forEach((value, i) => { sums[this.bar(i)] += value; });
    return sums;
  },

  bar(index) { return Math.floor(index / this.group); },

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
      const unit = kind === "accuracy" ? (this.model.metric.share ? "about %{y:.2%} of what is lost" : "about %{y:.4g} of what is lost") : "%{y:,} " + kind;
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
        shapes: this.shapes(kind),
      }, { displayModeBar: false });
      chart.drawn = true;
      fitted(chart);
      chart.on("plotly_click", event => {
        const { customdata, x } = event.points[0];
        if (customdata) this.select(layers[x * this.group].name);
      });
      return;
    }
    if (this.dragging && moved && this.moveBars(chart, values, moved, share, kind)) return;
    const top = ceiling ? chart._fullLayout.yaxis2.range[1] : this.lossRange(values);
    window.Plotly.update(chart, { x: [[share], ticks, chart.data[2].x, chart.data[3].x], y: [[0], [0], chart.data[2].y, values],
      "marker.color": [colours.primary, undefined, colours.faint, marker] }, { "yaxis2.range": [0, top], shapes: this.shapes(kind) });
  },

  /* Behind the total the dense network; on it the goals. */
  shapes(kind) {
    return [{ type: "rect", xref: "x", yref: "y", x0: 0, x1: 1, y0: -0.45, y1: 0.45, line: { width: 0 },
      fillcolor: this.colours.faint, layer: "below" }, ...this.goalShapes(kind)];
  },

  /* As much as the layer loses that loses most; of next to nothing no more than that. */
  lossRange(values) {
    const { share, dense } = this.model.metric, least = share ? 0.004 : Math.abs(dense || 1) / 50;
    return 1.25 * Math.max(least, ...values);
  },

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
  },

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
      limit: dark ? "#F0823C" : "#C24A00",
      font: read("--st-font", "sans-serif"),
    };
    for (const kind of ["accuracy", ...QUANTITIES]) this[kind + "Card"].chart.drawn = false;
    this.detailOf = null;
    if (this.data) this.draw(true);
  },
});

function luminance(colour) {
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = colour;
  const hex = probe.fillStyle;
  const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
