/* What is said in the live region: every result in words, also where a key and not a button has asked for it. */

const MOST_SAID = 3;                                             // layers that are named one by one

const REASONS = { undo: "Undone", redo: "Done again", restore: "Restored" };

Object.assign(Board.prototype, {
  /* The same words twice are said twice. */
  speak(text) {
    if (!text || !this.status) return;
    this.status.textContent = this.status.textContent === text ? text + "\u00a0" : text;
  },

  /* A layer's choice as people say it. */
  choiceText(layer, choice) {
    if (!choice) return "dense";
    const method = layer.methods[choice.method], others = Object.keys(layer.methods).length > 1 && choice.method !== layer.default;
    return `${others ? `${method ? method.label : choice.method} ` : ""}rank ${choice.rank.join(", ")}`;
  },

  totalText(choices = this.choices()) {
    const now = totals(this.model, choices);
    return `${words.count(now.bytes, "B")}, ${words.count(now.multiplies)} multiplies`;
  },

  /* What has become of the layers that differ; "" where none does. */
  changeText(before, after) {
    const said = choice => choice ? `${choice.method} ${choice.rank.join()} ${choice.free || ""}` : "";
    const changed = this.model.layers.filter(({ name }) => said(before[name]) !== said(after[name]));
    if (!changed.length) return "";
    const named = changed.slice(0, MOST_SAID).map(layer => `${layer.name} ${this.choiceText(layer, after[layer.name])}`);
    const more = changed.length - named.length;
    return `${named.join("; ")}${more ? ` and ${counted(more, "more layer")}` : ""}. ${this.totalText(after)}.`;
  },

  /* After Python has answered: an undo, snapshots that came or went. */
  newsText(before, data) {
    const news = [];
    if (before) {
      const changed = this.changeText(before, this.choices());
      if (changed) news.push(`${REASONS[this.reason] || "The plan has changed"}: ${changed}`);
    }
    const names = (data.snapshots || []).map(one => one.name), known = this.snapshotNames;
    this.snapshotNames = names;
    if (known) {
      const came = names.filter(name => !known.includes(name)), went = known.filter(name => !names.includes(name));
      if (came.length === 1 && went.length === 1) news.push(`Snapshot ${went[0]} is now called ${came[0]}.`);
      else for (const [list, what] of [[came, "taken"], [went, "removed"]]) {
        if (list.length === 1) news.push(`Snapshot ${list[0]} ${what}.`);
        else if (list.length) news.push(`${list.length} snapshots ${what}.`);
      }
    }
    return news.join(" ");
  },

  /* A change of the plan by a button or a key, not by a thumb, whose own value is read out. */
  speakPlan(what) { this.speak(`${what}. ${this.totalText()}.`); },
});
