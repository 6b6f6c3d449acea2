/* The rank board: what it knows, what it hears from Python and what it says. Python owns the plan, the browser owns the
   thumb during a drag; `rev` settles who is right: ranks from Python are adopted only when their rev is newer than ours.
   While a thumb is held nothing is committed, and only questions are asked (asking.js). The files after this one add to Board what the person sees and does. */

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
    this.pinned = new Set();
    this.by = "hand";                                      // who makes what is committed next: a hand, the front, a rule
    this.gave = new Set();                                 // layers that only gave way to the budget lock
    this.multiple = 1;
    this.hold = null;
    this.free = false;
    this.answers = new Map();                              // to questions of this gesture, by the plan
    this.tooSlow = "";
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
    this.narrow = window.matchMedia(NARROW);
    this.onWidth = () => this.fold();
    this.build();
    this.onFeed = event => this.feed(event.detail);
    this.onKey = event => {                                // from the page: ../finding.js
      const { key, letters } = event.detail;
      if (this.hearKey(key) || (letters && this.hearLetter(key))) event.preventDefault();
    };
    this.palette();
  }

  /* While it is on the page it hears the feed and follows the theme. */
  live() {
    this.left = false;
    window.addEventListener("rank-feed", this.onFeed);
    window.addEventListener("rank-key", this.onKey);
    this.narrow.addEventListener("change", this.onWidth);
    this.fold();
    clearInterval(this.look);
    this.look = window.setInterval(() => { if (this.root.isConnected) this.palette(); else this.leave(); }, 700);
  }

  leave() {
    this.left = true;
    this.outbox = [];
    this.stopAsking();
    window.removeEventListener("rank-feed", this.onFeed);
    window.removeEventListener("rank-key", this.onKey);
    this.narrow.removeEventListener("change", this.onWidth);
    clearInterval(this.look);
    clearTimeout(this.again);
    clearTimeout(this.telling);
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
    const underWay = this.outbox.some(message => message.action === "commit");   // an older plan would take its place
    let before = null;
    if (data.rev > this.rev && !this.dragging && !underWay) {
      before = this.rev < 0 ? null : this.choices();
      this.rev = data.rev;
      const chosen = Object.values(data.choices);
      if (chosen.length) this.free = chosen.some(choice => choice.free);
      for (const row of this.rows.values()) this.adopt(row, data.choices[row.layer.name] || null);
      if (!this.chosen) this.open(data);
      this.sent = JSON.stringify(this.choices());
      if (this.hold) this.setHold(this.hold.quantity);
    }
    this.hearGoals(data);
    this.correctBox.checked = data.corrected;
    this.freeBox.checked = this.free;
    this.toleranceSelect.value = data.tolerance === null ? "" : String(data.tolerance);
    const measured = data.rev === this.rev;
    if (measured) this.hear(data); else this.model.metric.dense = data.dense;
    this.speak([this.newsText(before, data), measured ? this.announce() : ""].filter(Boolean).join(" "));
    if (!this.outbox.length) this.reason = "";
    const locking = this.outbox.some(message => message.action === "lock");  // it has not been heard yet
    if (!locking && this.locks !== data.locked.join()) {
      this.locks = data.locked.join();
      this.locked = new Set(data.locked);
      for (const row of this.rows.values()) {
        row.lock.setAttribute("aria-pressed", String(this.locked.has(row.layer.name)));
        this.dirty.add(row);
      }
    }
    if (data.rev === this.rev) this.setPins(data.pinned);
    this.drawSnapshots();
    this.drawHistory();
    this.drawDifference();
    this.sayUnfolded();
    if (this.dragging) this.schedule(); else this.draw(true);
  }

  /* The first look: at the layer that is selected on other pages, or else the first that is compressed. */
  open(data) {
    const known = this.rows.get(data.layer);
    if (known) this.picked = this.told = data.layer;
    this.show(this.chosen = this.picked || Object.keys(data.choices)[0] || this.selected);
    if (!known) return;
    const top = element => element.getBoundingClientRect().top;
    this.list.scrollTop += top(known.element) - top(this.list) - this.list.clientHeight / 2;
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
    if (message.looks) { if (message.rev === this.rev) this.hearPanels(message.looks); return; }
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
    if (message.points || message.context) this.learnt = (this.learnt || 0) + 1;
    if (message.front) this.hearFront(message);
    if (message.uniform) { this.model.uniform = message.uniform; this.drawTradeoff(); }
    if (message.rev !== this.rev) return;
    this.hearGoals(message);
    this.hear(message);                                      // in a drag, too: it may end where it began
    if (this.dragging) return;
    this.drawAccuracy();
    this.drawGoals(this.choices(), totals(this.model, this.choices()));
    this.speak(this.announce());
    this.drawTradeoff();
    this.drawTables();
  }

  /* Figures of the plan as it stands, and the dense network's on as many samples as the page says. */
  hear({ dense, score, doing, done, plain, error, depth, remarks }) {
    if (dense !== undefined) this.model.metric.dense = dense;
    this.doing = doing;
    this.measuring = !done;
    this.plain = plain;
    this.depth = depth || "";
    this.remarks = remarks || [];
    if (score) {
      this.score = score;
      this.scoreRev = this.rev;
    }
    if (error) this.speak(error);
  }

  /* Words for each figure that is final, once: also of a plan that was measured before, as after an undo. */
  announce() {
    if (this.measuring || !this.score || this.scoreRev !== this.rev) return "";
    const figure = `${this.rev} ${this.depth} ${this.score.value} ${this.score.samples}`, first = !this.announced;
    if (figure === this.announced) return "";
    this.announced = figure;
    if (first) return "";
    const t = totals(this.model, this.choices());
    const how = this.depth ? ` with the ${this.depth} correction` : "";
    return `Measured ${words.score(this.model, this.score.value)}${how} on ${words.whole(this.score.samples)} samples; `
      + `${words.count(t.bytes, "B")}, ${words.count(t.multiplies)} multiplies.${this.brokenGoals()}`;
  }

  adopt(row, choice) {
    row.method = choice ? choice.method : (row.layer.methods[row.method] ? row.method : row.layer.default);
    row.dense = !choice;
    const free = choice ? Boolean(choice.free) : this.free;
    if (free !== row.free) { row.free = free; row.built = null; this.detailOf = null; }
    row.rank = choice ? choice.rank.slice() : row.layer.methods[row.method].top.slice();
    this.dirty.add(row);
  }

  /* -- what it says -- */

  act(action, extra = {}) {
    const button = { undo: this.undoButton, redo: this.redoButton }[action];
    if (button && button.disabled && !this.outbox.length && JSON.stringify(this.choices()) === this.sent) {
      this.speak(`There is nothing to ${action}.`);
      return;
    }
    this.reason = action;
    const plan = this.pending();
    if (plan) this.say("commit", plan);
    this.say(action, extra);
  }

  /* Of two triggers that come close together Streamlit keeps the later one, and one that comes while a page is still
     being built may be lost. So whatever Python has not said it has heard goes out again with the next, or by itself. */
  say(action, extra) {
    if (this.refuses(action)) return;
    const last = this.outbox[this.outbox.length - 1];
    if (action === "commit" && last && last.action === "commit" && last.gesture === extra.gesture) this.outbox.pop();
    this.outbox.push({ id: this.said += 1, action, ...extra });
    this.post();
  }

  post() {
    clearTimeout(this.again);
    if (this.left || !this.root.isConnected || (!this.outbox.length && this.told === this.picked)) return;
    if (!this.pressed) {
      this.told = this.picked;
      this.send("messages", { board: this.name, model: this.model.key, layer: this.picked || null, messages: this.outbox });
    }
    this.again = setTimeout(() => this.post(), AGAIN_MILLISECONDS);
  }
}
