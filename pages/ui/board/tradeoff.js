/* The trade-off: score against cost, with the snapshots and what sets two of them apart. */

Object.assign(Board.prototype, {
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
    }, { displayModeBar: false });
    if (!this.tradeoffChart.bound) {
      this.tradeoffChart.bound = true;
      this.tradeoffChart.style.position = "relative";
      this.tradeoffChart.on("plotly_click", event => {
        const name = event.points[0].customdata;
        if (name) this.act("restore", { name });
      });
      this.tradeoffChart.on("plotly_afterplot", () => this.moveTradeoff(totals(this.model, this.choices())));
      fitted(this.tradeoffChart);
    }
    this.moveTradeoff(totals(model, choices), predicted);
  },

  isMeasured() { return this.score && this.scoreRev === this.rev && !this.dragging; },

  nowScore(predicted) { return this.isMeasured() ? this.score.value : predicted; },

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
  },

  drawSnapshots() {
    const { model } = this;
    this.snapshotList.replaceChildren(...(this.data.snapshots || []).map(s => node("li", {},
      node("button", { type: "button", title: "Restore this plan", onclick: () => this.act("restore", { name: s.name }) }, s.name),
      node("span", {}, `${s.score === null && !s.not_finite ? "not measured" : words.score(model, s.score)} · ${words.count(s.bytes, "B")} · ${words.count(s.multiplies)}`),
      node("button", { type: "button", class: "rb-remove", "aria-label": `Remove snapshot ${s.name}`, title: "Remove",
        onclick: () => this.act("remove", { name: s.name }) }, "×"))));
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
