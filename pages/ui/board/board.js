/* The rank board: what it knows, what it hears from Python and what it says. Python owns the plan, the browser owns the
   thumb during a drag; `rev` settles who is right: ranks from Python are adopted only when their rev is newer than ours.
   While a thumb is held nothing is sent. The files after this one add to Board what the person sees and does. */

const AGAIN_MILLISECONDS = 5000;                             // without an answer, until a message goes out again

class Board {
  constructor(root, model, send) {
    this.root = root;
    this.model = model;
    this.send = send;
    this.rev = -1;
    this.gesture = Date.now();                             // also newer than those of a board before this one
    this.sent = "";
    this.name = Math.random().toString(36).slice(2);
    this.outbox = [];                                      // what Python has not said it has heard
    this.said = 0;
    this.rows = new Map();
    this.score = null;
    this.scoreRev = -1;
    this.measuring = false;
    this.selected = model.layers.length ? model.layers[0].name : null;
    this.locked = new Set();
    this.multiple = 1;
    this.hold = null;
    this.axis = "multiplies";
    this.dirty = new Set();
    this.frame = 0;
    this.hidden = new Set();                               // rows out of sight, and those not drawn as they are
    this.stale = new Set();
    this.sight = new IntersectionObserver(seen => {
      for (const { target, isIntersecting } of seen) {
        const row = this.rows.get(target.dataset.layer);
        if (!isIntersecting) this.hidden.add(row);
        else if (this.hidden.delete(row) && this.stale.has(row)) this.drawRow(row);
      }
    }, { rootMargin: "300px" });
    this.group = Math.ceil(model.layers.length / MOST_BARS) || 1;
    this.build();
    this.onFeed = event => this.feed(event.detail);
    this.palette();
  }

  /* While it is on the page it hears the feed and follows the theme. */
  live() {
    window.addEventListener("rank-feed", this.onFeed);
    clearInterval(this.look);
    this.look = window.setInterval(() => { if (this.root.isConnected) this.palette(); else this.leave(); }, 700);
  }

  leave() {
    window.removeEventListener("rank-feed", this.onFeed);
    clearInterval(this.look);
    clearTimeout(this.again);
  }

  /* -- what Python says -- */

  update(data) {
    this.data = data;
    const [board, heard] = data.heard;
    if (board === this.name) this.outbox = this.outbox.filter(message => message.id > heard);
    for (const [name, methods] of Object.entries(data.tails || {}))
      for (const [method, tails] of Object.entries(methods)) this.learn(name, method, tails);
    this.learnLatency(data.latency || {});
    this.undoButton.disabled = !data.can_undo;
    this.redoButton.disabled = !data.can_redo;
    if (data.rev > this.rev && !this.dragging) {
      this.rev = data.rev;
      for (const row of this.rows.values()) this.adopt(row, data.choices[row.layer.name] || null);
      if (!this.chosen) this.select(this.chosen = Object.keys(data.choices)[0] || this.selected);
      this.sent = JSON.stringify(this.choices());
      if (this.hold) this.setHold(this.hold.quantity);
    }
    this.correctBox.checked = data.corrected;
    this.toleranceSelect.value = data.tolerance === null ? "" : String(data.tolerance);
    if (data.rev === this.rev) this.hear(data);
    if (this.locks !== data.locked.join()) {
      this.locks = data.locked.join();
      this.locked = new Set(data.locked);
      for (const row of this.rows.values()) row.lock.setAttribute("aria-pressed", String(this.locked.has(row.layer.name)));
    }
    this.drawSnapshots();
    this.drawDifference();
    if (this.dragging) this.schedule(); else this.draw(true);
  }

  learn(name, method, tails) {
    const row = this.rows.get(name), known = row.layer.methods[method];
    if (known.tails) return;
    known.tails = tails;
    if (row.method === method) { row.built = null; this.detailOf = null; this.dirty.add(row); }
  }

  learnLatency(latency) {
    const known = JSON.stringify(latency);
    if (known === (this.latency || "{}")) return;
    this.latency = known;
    this.latencyLegend.hidden = known === "{}";
    for (const row of this.rows.values()) {
      for (const [name, method] of Object.entries(row.layer.methods)) method.latency = (latency[row.layer.name] || {})[name];
      row.built = null;
      this.dirty.add(row);
    }
    this.detailOf = null;
  }

  feed(message) {
    if (message.model !== this.model.key) return;
    if (message.learning !== undefined) this.learning = message.learning;
    if (message.points) {
      for (const [name, methods] of Object.entries(message.points)) {
        const row = this.rows.get(name);
        if (row) for (const [method, points] of Object.entries(methods))
          if (row.layer.methods[method]) row.layer.methods[method].points = points;
      }
      this.schedule();
    }
    if (message.context) this.model.context = message.context;
    if (message.uniform) { this.model.uniform = message.uniform; this.drawTradeoff(); }
    if (message.rev !== this.rev) return;
    const before = this.measuring;
    this.hear(message);                                      // in a drag, too: it may end where it began
    if (this.dragging) return;
    if (before && !this.measuring && this.score) this.announce();
    this.drawAccuracy();
    this.drawTradeoff();
  }

  /* Figures of the plan as it stands. */
  hear({ score, doing, done, plain, error }) {
    this.doing = doing;
    this.measuring = !done;
    this.plain = plain;
    if (score) {
      this.score = score;
      this.scoreRev = this.rev;
      if (done && score.within === null && !score.not_finite) this.model.metric.dense = score.dense;   // else it ended before all samples
    }
    if (error) this.status.textContent = error;
  }

  announce() {
    const t = totals(this.model, this.choices());
    this.status.textContent = `Measured ${words.score(this.model, this.score.value)} on ${words.whole(this.score.samples)} samples; `
      + `${words.count(t.bytes, "B")}, ${words.count(t.multiplies)} multiplies.`;
  }

  adopt(row, choice) {
    row.method = choice ? choice.method : (row.layer.methods[row.method] ? row.method : row.layer.default);
    row.dense = !choice;
    row.rank = choice ? choice.rank.slice() : row.layer.methods[row.method].top.slice();
    this.dirty.add(row);
  }

  /* -- what it says -- */

  act(action, extra = {}) {
    const plan = this.pending();
    if (plan) this.say("commit", plan);
    this.say(action, extra);
  }

  /* Of two triggers that come close together Streamlit keeps the later one, and one that comes while a page is still
     being built may be lost. So whatever Python has not said it has heard goes out again with the next, or by itself. */
  say(action, extra) {
    const last = this.outbox[this.outbox.length - 1];
    if (action === "commit" && last && last.action === "commit" && last.gesture === extra.gesture) this.outbox.pop();
    this.outbox.push({ id: this.said += 1, action, ...extra });
    this.post();
  }

  post() {
    clearTimeout(this.again);
    if (!this.outbox.length || !this.root.isConnected) return;
    if (!this.pressed) this.send("messages", { board: this.name, model: this.model.key, messages: this.outbox });
    this.again = setTimeout(() => this.post(), AGAIN_MILLISECONDS);
  }
}
