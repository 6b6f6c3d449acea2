/* What is measured while a thumb is held: the plan under it, when it rests and now and then while it moves. The answer
   takes the place of the prediction wherever the thumb stands on that plan again. At most one question is on its way,
   and a newer one that is more urgent calls it off; the thumb waits for none of them, and nothing of it is kept. */

const REST_BEFORE_ASKING = 100, BETWEEN_QUESTIONS = 250;     // milliseconds
const MOST_ANSWERS = 400;

Object.assign(Board.prototype, {
  /* A thumb has moved, or was taken hold of. */
  wonder() {
    if (!this.pressed || this.tooSlow) return;
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.ask(true), REST_BEFORE_ASKING);
    if (!this.question && performance.now() - (this.askedAt || 0) > BETWEEN_QUESTIONS) this.ask(false);
  },

  ask(rests) {
    if (!this.pressed || this.tooSlow || !this.data || !this.data.secret) return;
    const choices = this.choices(), plan = JSON.stringify(choices);
    if (this.answers.has(plan) || (this.question && (this.question.plan === plan || !rests))) return;
    if (this.question) this.question.end.abort();
    const question = this.question = { plan, end: new AbortController() };
    this.askedAt = performance.now();
    const done = answer => {
      if (this.question !== question) return;
      this.question = null;
      if (!this.pressed) return;
      if (answer && answer.slow) this.tooSlow = answer.slow;
      if (answer && answer.score) {
        this.answers.set(plan, answer);
        if (this.answers.size > MOST_ANSWERS) this.answers.delete(this.answers.keys().next().value);
      }
      if (this.dragging) this.schedule();
      this.root.dispatchEvent(new CustomEvent("rank-answered", { bubbles: true, detail: { plan, asked: this.askedAt, ...answer } }));
      const left = BETWEEN_QUESTIONS - (performance.now() - this.askedAt);
      if (answer && !answer.slow) setTimeout(() => { if (!this.question) this.ask(false); }, Math.max(0, left));
    };
    this.inquire(choices, question.end.signal).then(done, () => done(null));
  },

  /* A promise of the answer of the dashboard's server; a notebook puts its own in place of it. */
  inquire(choices, signal) {
    return fetch(beside("live"), {
      method: "POST", signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ secret: this.data.secret, model: this.model.key, choices }),
    }).then(response => response.json());
  },

  /* The thumb was let go: what it asked for is measured in earnest now. */
  stopAsking() {
    clearTimeout(this.resting);
    if (this.question) this.question.end.abort();
    this.question = null;
  },

  /* What was answered of the plan under the thumb. */
  answered(choices) {
    return this.dragging && this.answers.size ? this.answers.get(JSON.stringify(choices)) || null : null;
  },
});

/* The address of something that lies where the pages do. */
function beside(name) { return new URL(name, location.origin + location.pathname.replace(/\/+$/, "")).href; }
