/* Where the error arises: how far each layer's output is from the dense network's, along the network, with the plan's
   factors as they are and after the correction. */

const MOST_MARKERS = 160, MOST_TICKS = 9, TICK_LETTERS = 12;

Object.assign(Board.prototype, {
  buildDepth() {
    this.depthSays = node("p", { class: "rb-says", "data-testid": "depth-summary" });
    this.depthChart = node("div", { class: "rb-depth", "data-testid": "chart-depth", role: "img",
      "aria-label": "Relative error of each layer's output against dense, in the order of the network; a click selects the layer. The table below has the figures." });
    this.depthChart.addEventListener("click", event => this.selectAt(event));
    this.depthKey = node("p", { class: "rb-key" });
    this.depthTable = node("table", {});
    this.depthFigures = node("details", { class: "rb-figures", ontoggle: () => this.drawDepthTable() },
      node("summary", {}, "Table of these figures"),
      node("div", { class: "rb-scroll", tabindex: "0", role: "region", "aria-label": "Error of each layer" }, this.depthTable));
    return [this.depthSays, this.depthChart, this.depthKey, this.depthFigures];
  },

  drawDepth() {
    const { errors } = this;
    const says = this.panelSays(errors, this.errorsRev, this.errorsDepth, errors && !errors.error
      && `Error of each layer's output against dense, relative, on ${words.whole(errors.samples)} calibration samples`);
    if (this.depthSays.textContent !== says) this.depthSays.textContent = says;
    const able = Boolean(errors && errors.layers);
    this.depthChart.hidden = this.depthFigures.hidden = !able;
    if (!able) return;
    this.drawDepthTable();
    if (!this.panels.depth.seen) return;
    if (this.depthOf !== errors || this.depthOn !== this.background) this.plotDepth(errors);
    if (this.depthMarked !== this.selected) this.markDepth();
  },

  plotDepth({ layers }) {
    const { colours } = this;
    this.depthOf = this.errors;
    this.depthOn = this.background;
    const names = layers.map(([name]) => name), index = layers.map((_, i) => i);
    const corrected = layers.some(([, , after]) => after !== null), apart = index.filter(i => layers[i][3]);
    const mode = layers.length > MOST_MARKERS ? "lines" : "lines+markers";
    const line = (column, name, style) => ({ x: index, y: layers.map(layer => layer[column]), customdata: names, name, mode, ...style,
      hovertemplate: `%{customdata}<br>%{y:.2%} ${name}<extra></extra>` });
    const before = corrected ? "before correction" : "of this plan, uncorrected";
    const traces = [line(1, before, { line: { color: colours.muted, width: 1.5, dash: "dot" }, marker: { size: 5 } })];
    if (corrected) traces.push(line(2, "after correction", { line: { color: colours.primary, width: 2 }, marker: { size: 6 } }));
    traces.push({ x: apart, y: apart.map(() => 0), customdata: apart.map(i => `${names[i]}: ${layers[i][3]}`), mode: "markers", cliponaxis: false,
      marker: { symbol: "x-thin", size: 8, line: { width: 2, color: colours.text } }, hovertemplate: "%{customdata}<extra></extra>" });
    const every = Math.ceil(layers.length / MOST_TICKS), ticks = index.filter(i => i % every === 0);
    const short = name => name.length > TICK_LETTERS ? `…${name.slice(1 - TICK_LETTERS)}` : name;
    const axis = { gridcolor: colours.faint, zeroline: false, fixedrange: true };
    window.Plotly.react(this.depthChart, traces, {
      height: 180, margin: { l: 44, r: 12, t: 8, b: 26 }, showlegend: false, hovermode: "x", paper_bgcolor: "transparent",
      plot_bgcolor: "transparent", font: { color: colours.muted, size: 11, family: colours.font },
      xaxis: { ...axis, showgrid: false, range: [-0.4, layers.length - 0.6], tickvals: ticks, ticktext: ticks.map(i => short(names[i])), tickangle: 0 },
      yaxis: { ...axis, rangemode: "tozero", tickformat: ".3~p", nticks: 5 },
    }, { displayModeBar: false });
    if (!this.depthChart.bound) {
      this.depthChart.bound = true;
      this.depthChart.on("plotly_afterplot", () => this.markDepth());
      fitted(this.depthChart);
    }
    const key = [["before", before]];
    if (corrected) key.push(["after", "after correction"]);
    if (apart.length) key.push(["apart", `cannot be compared, or not finite: ${apart.length === 1 ? `${names[apart[0]]}, ${layers[apart[0]][3]}` : `${apart.length} layers, see the table`}`]);
    this.depthKey.replaceChildren(...key.map(([kind, text]) => node("span", { class: `rb-key-${kind}` }, text)));
    this.markDepth();
  },

  /* Where the selected layer stands. */
  markDepth() {
    const full = this.depthChart._fullLayout, at = this.depthOf.layers.findIndex(([name]) => name === this.selected);
    if (!full || !full.xaxis) return;
    this.depthMarked = this.selected;
    const mark = this.depthMark || (this.depthMark = node("div", { class: "rb-mark", "aria-hidden": "true" }));
    if (mark.parentNode !== this.depthChart) this.depthChart.append(mark);
    mark.hidden = at < 0;
    Object.assign(mark.style, { transform: `translateX(${full.xaxis._offset + full.xaxis.l2p(Math.max(0, at)) - 1}px)`, top: `${full._size.t}px`, height: `${full._size.h}px` });
  },

  selectAt(event) {
    const full = this.depthChart._fullLayout;
    if (!full || !this.depthOf) return;
    const x = event.clientX - this.depthChart.getBoundingClientRect().left - full.xaxis._offset;
    const layer = this.depthOf.layers[Math.max(0, rounded(full.xaxis.p2l(x)))];
    if (x >= 0 && x <= full.xaxis._length && layer) this.select(layer[0]);
  },

  drawDepthTable() {
    const { errors } = this;
    if (!this.depthFigures.open || !errors || !errors.layers || this.depthTable.of === errors) return;
    this.depthTable.of = errors;
    const figure = value => value === null ? "–" : words.percent(value, 2);
    this.depthTable.replaceChildren(
      node("thead", {}, node("tr", {}, ...["Layer", "Before correction", "After correction", "Remark"].map(title => node("th", { scope: "col" }, title)))),
      node("tbody", {}, ...errors.layers.map(([name, before, after, why]) => node("tr", {},
        node("th", { scope: "row" }, node("button", { type: "button", class: "rb-term", onclick: () => this.select(name) }, name)),
        node("td", {}, figure(before)), node("td", {}, figure(after)), node("td", {}, why)))));
  },
});
