/* The steps of the history, the branches that hang at them, and what is said where another session's work is shown. */

const SAID_READ_ONLY = "Nothing is changed: this is the work of another session. Make a copy of your own to go on from it.";

Object.assign(Board.prototype, {
  buildHistory() {
    this.historySummary = node("summary", {}, "History");
    this.historyBody = node("div", { class: "rb-steps" });
    this.historyPanel = node("details", { class: "rb-panel rb-history", ontoggle: () => this.openHistory() }, this.historySummary, this.historyBody);
    return this.historyPanel;
  },

  /* Python tells of the steps only while somebody looks. */
  openHistory() {
    const on = this.historyPanel.open;
    if (on !== Boolean(this.data && this.data.history)) this.say("open", { on });
  },

  drawHistory() {
    const { history, steps, view } = this.data, shown = JSON.stringify([history, steps, view]);
    if (shown === this.historyShown) return;
    this.historyShown = shown;
    this.historySummary.textContent = `History · ${steps} ${steps === 1 ? "step" : "steps"}`;
    if (!history) { this.historyBody.replaceChildren(); return; }
    this.historyPanel.open = true;
    const { line, at, branches, bound } = history;
    const scrolled = this.historyBody.querySelector("ol") ? this.historyBody.querySelector("ol").scrollTop : 0;
    const hanging = place => branches.filter(branch => branch.place === place).map(branch => this.branchItem(branch));
    const list = node("ol", { class: "rb-line-of-steps", reversed: true, "aria-label": "Steps, the latest first" });
    for (let place = line.length - 1; place >= 0; place--) list.append(this.stepItem(line[place], place, at), ...hanging(place));
    list.append(...hanging(null));
    this.historyBody.replaceChildren(list, node("p", {}, bound), view ? this.linkLine() : "");
    list.scrollTop = scrolled;
  },

  stepItem(step, place, at) {
    const said = place === at ? "now" : place > at ? "taken back" : "";
    return node("li", { class: place > at ? "rb-undone" : null }, this.stepButton(step, place, said));
  },

  stepButton(step, place, said, parent = "") {
    const measured = this.measuredText(step);
    return node("button", { type: "button", "aria-current": said === "now" ? "step" : null, title: [step.what, measured].filter(Boolean).join("\n"),
      onclick: () => { this.status.textContent = `Went to: ${step.what}.`; this.act("go", { plan: step.plan, at: place, parent }); } },
      node("span", { class: "rb-when" }, whenText(step.seconds)), node("span", { class: "rb-what" }, step.what),
      node("span", { class: "rb-when" }, [said, measured].filter(Boolean).join(" · ")));
  },

  branchItem({ parent, steps }) {
    const [first] = steps, count = steps.length;
    return node("li", { class: "rb-branch" },
      node("details", {}, node("summary", {}, `Branch of ${count} ${count === 1 ? "step" : "steps"}: ${first.what}`),
        node("ol", {}, ...steps.map(step => node("li", {}, this.stepButton(step, -1, "", parent))))));
  },

  /* The address that shows all this in another browser, and cannot change it. */
  linkLine() {
    const address = new URL(window.location.href), model = address.searchParams.get("model");
    address.search = new URLSearchParams({ view: this.data.view, ...(model ? { model } : {}) });
    address.hash = "";
    const shown = node("input", { type: "text", readonly: true, value: address.href, "aria-label": "Read-only link", onfocus: event => event.target.select() });
    const copy = async () => {
      try { await navigator.clipboard.writeText(shown.value); this.status.textContent = "The read-only link is copied."; } catch { shown.select(); }
    };
    return node("p", { class: "rb-snap" }, node("label", {}, "Read-only link ", shown), node("button", { type: "button", onclick: copy }, "Copy"));
  },

  /* Whether something is not to be done where another session's work is shown; then all is as it was. */
  refuses(action) {
    if (!this.data || !this.data.read_only || action === "open") return false;
    this.rev = -1;
    this.status.textContent = SAID_READ_ONLY;
    setTimeout(() => this.update(this.data));                    // after whoever asked has done
    return true;
  },
});
