/* The panel of the selected layer: its facts, and its singular values with marks at its rank and break-even. On a phone it
   is a sheet over the lower edge, with the layer's tracks once more and large. */

const NARROW = "(max-width: 600px)";

Object.assign(Board.prototype, {
  /* A panel or a sheet, as wide as the window is. */
  fold() {
    const sheet = this.narrow.matches;
    if (sheet === this.detail.hasAttribute("popover")) return;
    this.detail.popover = sheet ? "auto" : null;             // a sheet goes at Escape and at a touch beside it, by itself
    if (sheet) this.detail.setAttribute("role", "dialog"); else this.detail.removeAttribute("role");
    this.detailOf = null;
    if (this.data) this.schedule();
  },

  openSheet() {
    if (!this.detail.hasAttribute("popover") || this.detail.matches(":popover-open")) return;
    this.detail.showPopover();
    this.detailOf = null;                                      // the chart, which was not drawn out of sight
    this.drawDetail();
    this.large.querySelector("input").focus({ preventScroll: true });
  },

  /* Its tracks once more, each between a step down and a step up. */
  buildLarge(row) {
    const { axes } = row.layer.methods[row.method];
    this.largeOf = row.tracks;
    this.largeTracks = axes.map((axis, index) =>
      this.buildTrack(row, index, axes.length === 1 ? "Rank of the selected layer" : `Rank ${axis} of the selected layer`));
    this.large.replaceChildren(...this.largeTracks.map((track, index) => {
      const step = (sign, up, name) => node("button", { type: "button", "aria-label": axes.length === 1 ? name : `${name}, ${axes[index]}`,
        onclick: () => this.put(track, nextRank(track.top, track.shown(), up, this.multiple)) }, sign);
      return node("div", { class: "rb-step" }, step("−", false, "Lower rank"), track.box, step("+", true, "Higher rank"));
    }));
    this.largeTracks.forEach(track => this.drawTrack(track));
  },

  drawDetail() {
    const row = this.rows.get(this.selected);
    if (!row) return;
    const { layer } = row, method = layer.methods[row.method];
    const choice = row.dense ? null : { method: row.method, rank: row.rank };
    const stored = form(layer, row.method, row.free);
    const key = layer.name + row.method;
    if (row.built !== row.method) this.drawRow(row);
    if (this.largeOf !== row.tracks) this.buildLarge(row);
    if (this.detailOf !== key) {
      this.detailOf = key;
      this.detailTitle.textContent = `${layer.name} · ${layer.shape}`;
      this.methodSelect.replaceChildren(...Object.entries(layer.methods).map(([name, m]) =>
        node("option", { value: name, title: m.label }, m.label)), node("option", { value: "dense" }, "Dense"));
      clearTimeout(this.plotting);
      if (!this.detail.checkVisibility()) this.detailOf = null;
      else if (this.dragging) this.plotting = setTimeout(() => { this.plotDetail(row, method); this.placeMarks(row); }, 60);
      else this.plotDetail(row, method);
    }
    this.methodSelect.value = row.dense ? "dense" : row.method;
    const e = Math.sqrt(errorSquared(layer, choice));
    const facts = [`rank ${row.dense ? "–" : row.rank.join(", ")} of ${method.top.join(", ")}`,
      `weight error ${words.percent(e, 1)}`, `energy kept ${words.percent(1 - e * e, 1)}`];
    const even = QUANTITIES.map(q => stored.even[q].join(", "));
    facts.push(even[0] === even[1] ? `break-even ${even[0]}` : `break-even ${even[0]} (bytes), ${even[1]} (multiplies)`);
    if (method.latency && method.latency.even)
      facts.push(method.latency.even[0] ? `${method.latency.even.join(", ")} (latency)` : "never faster than dense here");
    if (method.latency && choice && method.latency.dominated.some(rank => rank.join() === choice.rank.join()))
      facts.push("slower than a larger rank");
    const rate = this.exchange(row);
    if (rate) facts.push(rate);
    this.detailFacts.textContent = facts.join(" · ");
    this.placeMarks(row);
  },

  /* What the next step down saves and costs, where that is known and worth a word: a twentieth of the maximum. */
  exchange(row) {
    const { model } = this, { layer } = row, { top, points } = layer.methods[row.method];
    if (row.dense || !model.metric.share || !points.length) return "";
    const rank = row.rank.map((r, axis) => Math.max(1, r - Math.max(1, rounded(top[axis] / 20))));
    const below = { method: row.method, rank }, saved = cost(layer, row, "bytes") - cost(layer, below, "bytes");
    const lost = 100 * saved * exchangeRate(model, layer, row, "bytes");
    if (!(saved > 0) || !(lost >= 0.05)) return "";
    return `rank ${row.rank.join(", ")} to ${rank.join(", ")} saves ${words.quantity("bytes", saved)} and costs about ${fixed(lost, 1)} points`;
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
      yaxis: { ...axis, type: "log", domain: [0.5, 1], title: { text: "σ (log)" }, exponentformat: "power", dtick: 1 },
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
        if (shown) this.placeMarks(shown);
      });
      fitted(this.detailChart);
    }
  },

  placeMarks(row) {
    const full = this.detailChart._fullLayout;
    if (!full || !full.xaxis) return;
    const marks = this.marks || (this.marks = ["chosen", "chosen", "bytes", "multiplies"].map(kind =>
      node("div", { class: `rb-mark rb-mark-${kind}`, "aria-hidden": "true" })));
    if (marks[0].parentNode !== this.detailChart) this.detailChart.append(...marks);
    const { even } = form(row.layer, row.method, row.free);
    const places = [row.dense ? null : row.rank[0], row.dense || row.rank.length < 2 ? null : row.rank[1],
      even.bytes[0] || null, even.multiplies[0] !== even.bytes[0] ? even.multiplies[0] || null : null];
    const says = [`rank ${places[0]}`, `rank ${places[1]}`, `break-even ${places[2]}`, `break-even ${places[3]} (multiplies)`];
    marks.forEach((mark, i) => {
      mark.hidden = places[i] === null;
      mark.dataset.says = says[i];
      const x = full.xaxis.l2p(places[i] || 0), lower = i < 2 && even.bytes[0] && places[i] < even.bytes[0];
      mark.dataset.side = x > full.xaxis._length - [60, 60, 85, 150][i] || (lower && x > 60) ? "left" : "right";
      if (places[i] === null) return;
      mark.style.transform = `translateX(${full.xaxis._offset + full.xaxis.l2p(places[i])}px)`;
      mark.style.top = `${full._size.t}px`;
      mark.style.height = `${full._size.h}px`;
    });
  },
});
