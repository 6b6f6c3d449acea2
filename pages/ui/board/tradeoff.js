/* The trade-off: score against cost, and what sets two snapshots apart. */

Object.assign(Board.prototype, {
  drawTradeoff() {
    if (!window.Plotly || !this.data) return;
    const colours = this.colours, { model, axis } = this;
    const uniform = this.uniformPlans = (model.uniform || []).slice().sort((a, b) => a[axis] - b[axis]);
    const snapshots = (this.data.snapshots || []).filter(s => s.score !== null);
    const x = value => 100 * value / model.dense[axis];
    const y = value => model.metric.share ? 100 * value : value;
    const named = { x: snapshots.map(s => x(s[axis])), y: snapshots.map(s => y(s.score)), mode: "markers+text", name: "snapshot",
      hovertext: snapshots.map(s => this.snapshotSays(s)), customdata: snapshots.map(s => s.name), cliponaxis: false,
      marker: { color: colours.snapshot, symbol: "diamond", size: 11 }, hovertemplate: "%{hovertext}: %{y:.4g} at %{x:.1f} %<extra>click restores</extra>" };
    const traces = [
      ...this.frontTraces(x, y),
      { x: uniform.map(u => x(u[axis])), y: uniform.map(u => y(u.value)), mode: "lines+markers", name: "uniform", hoverinfo: "none",
        line: { color: colours.muted, width: 1.5 }, marker: { size: 7 } },
      { x: [100], y: [model.metric.dense === null ? null : y(model.metric.dense)], mode: "markers", name: "dense",
        marker: { color: colours.text, symbol: "square-open", size: 9 }, hovertemplate: "dense<extra></extra>" },
      named,
    ];
    const reach = this.frontReach(), beyond = ["front", "band", ...(reach.length ? ["uniform"] : [])];
    const values = [...traces.filter(t => !beyond.includes(t.name)).flatMap(t => t.y), ...reach.map(y)]
      .filter(v => v !== null && v !== undefined);
    const choices = this.choices(), predicted = predict(model, choices), now = this.nowScore(predicted);
    if (now !== null) values.push(y(now));
    const low = Math.min(...values, Infinity), high = Math.max(...values, -Infinity);
    const room = Math.max((high - low) * 0.12, 1e-3);
    Object.assign(named, this.snapshotLabels(named, [low - room, high + room]));
    const grid = { gridcolor: colours.faint, zeroline: false, fixedrange: true };
    window.Plotly.react(this.tradeoffChart, traces, {
      height: 220, margin: { l: 48, r: 10, t: 8, b: 36 }, showlegend: false, hovermode: "closest", paper_bgcolor: "transparent",
      plot_bgcolor: "transparent", font: { color: colours.muted, size: 11, family: colours.font },
      xaxis: { ...grid, title: { text: `${axis}, % of dense`, standoff: 4 }, range: [0, 104] },
      yaxis: { ...grid, title: { text: model.metric.share ? `${model.metric.label}, %` : model.metric.label },
        range: values.length ? [low - room, high + room] : undefined },
      shapes: this.goalAcross(y),
    }, { displayModeBar: false });
    if (!this.tradeoffChart.bound) {
      this.tradeoffChart.bound = true;
      this.tradeoffChart.style.position = "relative";
      this.tradeoffChart.on("plotly_click", event => this.clicked(event));
      this.tradeoffChart.on("plotly_hover", event => { const point = this.hit(event); if (point) this.showPoint(point); });
      this.tradeoffChart.on("plotly_unhover", () => this.hidePoint());
      this.tradeoffChart.on("plotly_afterplot", () => this.moveTradeoff(totals(this.model, this.choices())));
      fitted(this.tradeoffChart);
      this.frontSight.observe(this.tradeoffChart);
    }
    const key = [["now", "this plan"], ["ghost", "predicted"], ["dense", "dense"]];
    if (this.front.points.length > 1) key.push(["front", "front, predicted (click to adopt)"]);
    if (this.measuredPlans.length) key.push(["measured", "measured plan (click to adopt)"]);
    if (uniform.length) key.push(["uniform", "the same share of every rank (click to adopt)"]);
    if (snapshots.length) key.push(["snapshot", "snapshot (click to restore)"]);
    this.tradeoffKey.replaceChildren(...key.map(([kind, text]) => node("span", { class: `rb-key-${kind}` }, text)));
    this.moveTradeoff(totals(model, choices), predicted);
    this.sayFront();
    const points = this.front.points.length;
    this.walkTrack.top = Math.max(1, points);
    this.walkSlider.max = this.walkTrack.top;
    this.walkSlider.disabled = points < 2;
    this.placeWalk(totals(model, choices));
    this.reckonFront();
  },

  isMeasured() { return this.score && this.scoreRev === this.rev && !this.dragging; },

  nowScore(predicted) { return this.isMeasured() ? this.score.value : predicted.value; },

  moveTradeoff(now, predicted = predict(this.model, this.choices())) {
    const full = this.tradeoffChart._fullLayout;
    if (!full || !full.xaxis) return;
    const mark = this.nowMark || (this.nowMark = node("div", { class: "rb-now", title: "this plan" }));
    const ghost = this.ghostMark || (this.ghostMark = node("div", { class: "rb-now rb-ghost", title: "predicted" }));
    const band = this.nowBand || (this.nowBand = node("div", { class: "rb-band", title: "where it is predicted to lie" }));
    if (mark.parentNode !== this.tradeoffChart) this.tradeoffChart.append(band, ghost, mark);
    const height = score => {
      const [bottom, top] = full.yaxis.range, shown = Math.min(top, Math.max(bottom, this.model.metric.share ? 100 * score : score));
      return full.yaxis._offset + full.yaxis.l2p(shown);
    };
    const across = full.xaxis._offset + full.xaxis.l2p(100 * now[this.axis] / this.model.dense[this.axis]);
    const place = (element, value) => {
      element.hidden = value === null;
      if (value === null) return;
      element.style.transform = `translate(${across}px, ${height(value)}px)`;
    };
    const measured = this.isMeasured();
    place(mark, this.nowScore(predicted));
    place(ghost, measured ? predicted.value : null);
    band.hidden = measured || predicted.value === null;
    if (!band.hidden) {
      const ends = [predicted.high, predicted.low].map(height).sort((a, b) => a - b);
      Object.assign(band.style, { left: `${across - 4}px`, width: "8px", top: `${ends[0]}px`, height: `${Math.max(2, ends[1] - ends[0])}px` });
    }
    mark.classList.toggle("rb-unsure", !measured);
  },

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
    const delta = q => { const d = after[q] - before[q]; return (d < 0 ? "−" : "+") + words.quantity(q, Math.abs(d)); };
    this.differenceList.replaceChildren(
      node("li", {}, rows.length ? `${delta("bytes")}, ${delta("multiplies")} multiplies` : "no difference"),
      ...rows.map(([name, a, b]) => node("li", {}, `${name}: ${a} → ${b}`)));
  },
});
