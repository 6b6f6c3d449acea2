/* Beside each chart its numbers as a table, folded; written when it is opened, and anew when something has changed. */

/* What a chart of Plotly's shows, point by point: a row of headings, then rows of text.

   does(point): what a press on the name of such a point does, as a click on its dot; null where that does nothing. */
function pointRows(chart, across, up, does) {
  const rows = [["Series", across, up]];
  for (const data of chart.data || [])
    (data.y || []).forEach((value, i) => {
      if (value === null || value === undefined) return;
      const text = (data.text && data.text[i]) || data.name || "", share = general(Number(data.x[i]), 4);
      const act = does({ data, pointNumber: i, customdata: data.customdata && data.customdata[i] });
      rows.push([act ? { text, act, says: `${text} at ${share}: adopt this plan` } : text, share, general(Number(value), 4)]);
    });
  return rows;
}

function cell(content) {
  return typeof content === "string" ? content
    : node("button", { type: "button", class: "rb-term", "aria-label": content.says, title: content.says, onclick: content.act }, content.text);
}

Object.assign(Board.prototype, {
  /* rows(): a row of headings, then rows of text, of which one that can be pressed is { text, act, says }. */
  buildTable(label, rows) {
    const table = node("table", {}), one = { table, rows, written: "" };
    one.details = node("details", { class: "rb-table", ontoggle: () => this.drawTables() },
      node("summary", {}, label), node("div", { class: "rb-table-box", tabindex: 0, role: "region", "aria-label": label }, table));
    (this.tables = this.tables || []).push(one);
    return one.details;
  },

  drawTables() {
    for (const one of this.tables || []) {
      if (!one.details.open || !this.data) continue;
      const [head, ...rows] = one.rows(), written = JSON.stringify([head, rows]);
      if (one.written === written) continue;
      one.written = written;
      const line = (cells, tag) => node("tr", {}, ...cells.map((text, at) => node(at ? tag : "th", { scope: tag === "th" ? "col" : at ? null : "row" }, cell(text))));
      const buttons = () => [...one.table.querySelectorAll("button")], pressed = buttons().indexOf(document.activeElement);
      one.table.replaceChildren(node("thead", {}, line(head, "th")), node("tbody", {}, ...rows.map(cells => line(cells, "td"))));
      if (pressed >= 0) (buttons()[pressed] || buttons().at(-1))?.focus({ preventScroll: true });
    }
  },

  /* What the three cards draw: of each layer its choice, what it costs, and what is lost there. */
  layerRows() {
    const choices = this.choices(), { model } = this, losses = this.accuracyCard.chart.shown || [];
    const rows = model.layers.map(layer => {
      const choice = choices[layer.name] || null, [bytes, multiplies] = QUANTITIES.map(quantity => cost(layer, choice, quantity));
      const lost = losses[layer.index] || 0;
      return [layer.name, this.choiceText(layer, choice), words.count(bytes, "B"), words.count(layer.dense.bytes, "B"),
        words.count(multiplies), words.count(layer.dense.multiplies), model.metric.share ? words.percent(lost, 2) : general(lost, 4)];
    });
    const now = totals(model, choices);
    return [["Layer", "Choice", "Weights", "dense", "Multiplies", "dense", "About lost"], ...rows,
      ["In total, with what is no layer", "", words.count(now.bytes, "B"), words.count(model.dense.bytes, "B"), words.count(now.multiplies), words.count(model.dense.multiplies), ""]];
  },

  spectrumRows() {
    const row = this.rows.get(this.selected);
    if (!row) return [["Rank"]];
    const { axes } = row.layer.methods[row.method], tails = tailsOf(row.layer, row.method);
    const head = tails.flatMap((tail, axis) => axes.length > 1 ? [`Rank ${axes[axis]}`, "σ", "Energy kept"] : ["Rank", "σ", "Energy kept"]);
    const longest = Math.max(...tails.map(tail => tail.sigma_ranks.length));
    const rows = Array.from({ length: longest }, (_, i) => tails.flatMap(tail => i < tail.sigma_ranks.length
      ? [String(tail.sigma_ranks[i]), general(tail.sigma[i], 4), words.percent(1 - tail.lost[i + 1], 1)] : ["", "", ""]));
    return [head, ...rows];
  },

  tradeoffRows() {
    const { share, label } = this.model.metric;
    return pointRows(this.tradeoffChart, `${this.axis}, % of dense`, share ? `${label}, %` : label,
      point => this.hit({ points: [point] }) || point.customdata ? () => this.takeUp(point) : null);
  },
});
