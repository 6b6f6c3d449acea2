/* The panel of the selected layer: its facts, and its singular values with marks at its rank and break-even. */

Object.assign(Board.prototype, {
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
      `weight error ${words.percent(e, 1)}`, `energy kept ${words.percent(1 - e * e, 1)}`];
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
  },

  /* Accuracy points per kB and per million multiplies, for the next step down. */
  exchange(row) {
    const { model } = this, { layer } = row;
    if (row.dense || !model.metric.share) return "";
    const rate = (quantity, unit) => {
      const lost = exchangeRate(model, layer, row, quantity);
      return lost === null ? "–" : fixed(100 * lost * unit, 3);
    };
    return `next step down: ${rate("bytes", 1e3)} points per kB, ${rate("multiplies", 1e6)} per M multiplies`;
  },

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
    }, { displayModeBar: false });
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
        const rank = Math.max(1, rounded(full.xaxis.p2l(x)));
        this.newGesture();
        this.setRank(target, top.map(m => top.length === 1 ? rank : rounded(rank / Math.max(...top) * m)));
        this.commit();
        this.draw(true);
      });
      this.detailChart.on("plotly_afterplot", () => {
        const shown = this.rows.get(this.selected);
        if (shown) this.placeMarks(shown, shown.layer.methods[shown.method]);
      });
      fitted(this.detailChart);
    }
  },

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
  },
});
