/* Panels under the figures, folded until a person wants them; the browser remembers which. Folded they cost nothing:
   Python computes only what is unfolded. A chart that is out of sight is drawn when it comes into sight. */

const UNFOLDED = "rank-explorer-unfolded";

function rememberedPanels() {
  try { return JSON.parse(localStorage.getItem(UNFOLDED)) || []; } catch { return []; }   // storage may be closed to pages
}

Object.assign(Board.prototype, {
  /* others: what is folded beside them, and is the browser's own. */
  buildPanels(...others) {
    const before = rememberedPanels();
    this.panels = {};
    const panel = (name, title, ...inside) => {
      const place = node("details", { class: "rb-fold", "data-testid": `panel-${name}`, ontoggle: () => this.unfolded() },
        node("summary", {}, title), ...inside);
      place.open = before.includes(name);
      this.panels[name] = { place, seen: false };
      return place;
    };
    const panels = node("div", { class: "rb-folds" },
      panel("answers", "Answers that move", ...this.buildStrip()),
      panel("depth", "Where the error arises", ...this.buildDepth()), ...others);
    const sight = new IntersectionObserver(all => {
      for (const { target, isIntersecting } of all)
        Object.values(this.panels).find(one => one.place === target).seen = isIntersecting;
      if (this.data && !this.left) this.drawPanels();
    });
    for (const { place } of Object.values(this.panels)) sight.observe(place);
    return panels;
  },

  openPanels() { return Object.keys(this.panels).filter(name => this.panels[name].place.open); },

  unfolded() {
    try { localStorage.setItem(UNFOLDED, JSON.stringify(this.openPanels())); } catch { /* then it is not remembered */ }
    this.sayUnfolded();
    if (this.data) this.drawPanels();
  },

  /* Python is told where it does not know yet what is unfolded. */
  sayUnfolded() {
    if (!this.data) return;
    const open = this.openPanels(), said = this.outbox.filter(message => message.action === "unfold").pop();
    if ((said ? said.panels : this.data.unfolded || []).join() !== open.join()) this.say("unfold", { panels: open });
  },

  /* From the feed, of the plan as it stands. */
  hearPanels({ answers, errors, depth }) {
    if (answers) { this.strip = answers; this.stripRev = this.rev; this.stripDepth = depth; }
    if (errors) { this.errors = errors; this.errorsRev = this.rev; this.errorsDepth = depth; }
    if ((answers || errors) && !this.dragging) requestAnimationFrame(() => this.drawPanels());
  },

  /* In each frame that is drawn: next to nothing where nothing of it has changed. */
  drawPanels() {
    if (this.panels.answers.place.open) this.drawStrip();
    if (this.panels.depth.place.open) this.drawDepth();
  },

  /* Whose figures a panel shows: the plan's as it stands, or those of one before. */
  panelSays(what, rev, depth, text) {
    if (!what) return this.measuring ? "Known when the plan is measured." : "Being looked at…";
    if (what.error) return what.error;
    if (rev === this.rev && !this.dragging) return `${text}${depth ? `, with the ${depth} correction` : ""}.`;
    return "Of the plan before. This one's are known when it is measured.";
  },
});
