/* The front: the best plans within many budgets, as the server finds them from what single layers were measured to lose;
   the slider that walks along it, plans that were measured, and pins. Bytes, multiplies and scores of its plans are this
   board's own, so that a point and the plan that it adopts have one figure. */

const SLICE_MILLISECONDS = 6;                                    // of reckoning, between which a page is drawn
const ADOPTS = "Click to adopt this plan";

function sameChoice(one, other) {
  return one && other ? one.method === other.method && one.rank.join() === other.rank.join() : !one === !other;
}

/* Of points that cost ever more those that are predicted to be better than all before them; the last one always. */
function undominated(points, higher) {
  let best = null;
  return points.filter(({ value }, i) => {
    if (i < points.length - 1 && best !== null && (higher ? value <= best : value >= best)) return false;
    best = value;
    return true;
  });
}

Object.assign(Board.prototype, {
  buildFront() {
    this.front = { points: [], key: "" };
    this.measuredPlans = [];
    this.walkAt = 0;
    this.walkSlider = node("input", { type: "range", min: 1, max: 1, step: 1, value: 1, class: "rb-walk", disabled: true,
      "aria-label": "Smaller or more accurate", title: "Along the front: all unlocked layers without a pin move together" });
    const track = this.walkTrack = { input: this.walkSlider, rail: this.walkSlider, top: 1, log: false, shown: () => this.walkAt + 1 };
    this.follow(track);
    this.walkSlider.addEventListener("input", () => this.walk(Number(this.walkSlider.value) - 1));
    this.frontLine = node("p", { class: "rb-front-says", "data-testid": "front-says" });
    this.pinLine = node("p", { class: "rb-front-says", "data-testid": "front-pins", hidden: true });
    const box = node("div", { class: "rb-front", role: "group", "aria-label": "Front" },
      node("div", { class: "rb-walk-row" }, node("span", { "aria-hidden": "true" }, "smaller"), this.walkSlider,
        node("span", { "aria-hidden": "true" }, "more accurate")),
      this.frontLine, this.pinLine);
    const inSight = new Set();                                   // the slider, and the chart
    this.frontSight = new IntersectionObserver(seen => {
      for (const { target, isIntersecting } of seen) if (isIntersecting) inSight.add(target); else inSight.delete(target);
      this.frontSeen = inSight.size > 0;
      if (this.frontSeen) this.reckonFront();
    }, { rootMargin: "600px", scrollMargin: "600px" });
    this.frontSight.observe(box);
    return box;
  },

  /* -- what the server says -- */

  hearFront({ front, measured }) {
    this.fronts = front;
    this.frontNumber = (this.frontNumber || 0) + 1;
    this.measuredPlans = measured;
    for (const [name, methods] of Object.entries(front.tails))
      for (const [method, tails] of Object.entries(methods)) this.learn(name, method, tails);
    if (!this.dragging) this.drawTradeoff();
  },

  isHeld(name) { return this.locked.has(name) || this.pinned.has(name); },

  heldChoices() {
    const choices = this.choices();
    return Object.fromEntries([...this.rows.keys()].filter(name => this.isHeld(name)).map(name => [name, choices[name] || null]));
  },

  /* Whether the front was found for the layers that are held now, as they are. */
  isForThese(held = this.heldChoices()) {
    const { held: of, free } = this.fronts, names = Object.keys(held);
    return names.length === Object.keys(of).length && names.every(name => name in of && sameChoice(of[name], held[name]))
      && (free === this.free || !Object.keys(this.choices()).length);
  },

  /* -- its figures -- */

  /* In slices, while no thumb is held and the chart is in sight: a plan of 1,000 layers takes milliseconds. */
  reckonFront() {
    if (!this.fronts || !this.data) return;
    const held = this.heldChoices();
    const key = JSON.stringify([this.frontNumber, this.axis, this.learnt, this.model.metric.dense, this.free, this.multiple, held]);
    if (key === this.front.key || key === this.reckoned) return;
    const found = this.fronts.of[this.axis] || { layers: [], plans: [] }, points = [];
    clearTimeout(this.reckoning);
    this.reckoned = key;
    const slice = () => {
      if (this.left || this.dragging || this.pressed || !this.frontSeen) { this.reckoned = ""; return; }   // another drawing begins anew
      for (const until = performance.now() + SLICE_MILLISECONDS; points.length < found.plans.length && performance.now() < until;)
        points.push(this.pointOf(found.layers, found.plans[points.length], held));
      if (points.length < found.plans.length) { this.reckoning = setTimeout(slice); return; }
      points.sort((a, b) => a[this.axis] - b[this.axis]);
      this.front = { key, points: undominated(points, this.model.metric.higher), whole: Object.keys(held).length < this.rows.size };
      this.reckoned = "";
      this.drawTradeoff();
    };
    this.reckoning = setTimeout(slice);
  },

  pointOf(layers, numbers, held) {
    const choices = {}, free = this.free;
    layers.forEach(([name, options], i) => {
      const option = options[numbers[i]];
      if (!option || name in held) return;
      const { layer } = this.rows.get(name), { top, free: canBeFree } = layer.methods[option[0]];
      const choice = { method: option[0], rank: option[1].map((rank, axis) => allowedRank(top[axis], rank, this.multiple)) };
      if (free && canBeFree) choice.free = true;
      if (!savesNothing(layer, choice)) choices[name] = choice;
    });
    for (const [name, choice] of Object.entries(held)) if (choice) choices[name] = choice;
    return { choices, flash: {}, ...totals(this.model, choices), ...predict(this.model, choices) };
  },

  /* What becomes of the goals on the board: "kept", "open", "broken", or "" where there are none. RAM is not known before. */
  keeps(point) {
    const { device, floor, number } = this.goals, { metric } = this.model, verdicts = [];
    if (device) {
      const need = point.flash[number] || (point.flash[number] = flashBytes(this.model, point.choices, number));
      verdicts.push(judged(need, need, device.flash_bytes, false));
    }
    if (floor !== null && point.value !== null) verdicts.push(judged(point.low, point.high, floor, metric.higher));
    return ["broken", "open", "kept"].find(one => verdicts.includes(one)) || "";
  },

  /* -- what a person does -- */

  take(point) {
    for (const row of this.rows.values()) {
      const choice = point.choices[row.layer.name] || null;
      if (!this.isHeld(row.layer.name) && !sameChoice(row.dense ? null : row, choice)) this.adopt(row, choice);
    }
    if (this.hold) this.setHold(this.hold.quantity);
  },

  walk(index) {
    const point = this.front.points[index];
    if (!point) return;
    this.begin();
    this.by = "front";
    this.walkAt = index;
    this.take(point);
    this.schedule();
    this.rest();
    this.wonder();
  },

  adoptPoint(index) {
    const point = this.front.points[index];
    if (!point || this.dragging) return;
    this.newGesture();
    this.by = "front";
    this.take(point);
    this.commit();
    this.status.textContent = `Adopted: ${this.figuresOf(point).join(", ")}.`;
  },

  /* The slider stands at the point that costs what the plan does, or next to it. */
  placeWalk(now) {
    const { points } = this.front, slider = this.walkSlider;
    if (!points.length) return;
    const walking = this.dragging && this.by === "front";
    if (!walking) {
      const apart = point => Math.abs(point[this.axis] - now[this.axis]);
      this.walkAt = points.reduce((best, point, i) => apart(point) < apart(points[best]) ? i : best, 0);
    }
    const point = points[this.walkAt], on = QUANTITIES.every(quantity => point[quantity] === now[quantity]);
    if (this.held !== this.walkTrack && Number(slider.value) !== this.walkAt + 1) slider.value = this.walkAt + 1;
    if (this.walkOn === on && this.walkPoint === point) return;
    this.walkOn = on;
    this.walkPoint = point;
    slider.classList.toggle("rb-beside", !on);
    slider.setAttribute("aria-valuetext", `${on ? "" : "beside the front, next to "}plan ${this.walkAt + 1} of ${points.length}: ${this.figuresOf(point).join(", ")}`);
  },

  /* -- pins -- */

  buildPin(row) {
    const { name } = row.layer;
    row.pin = node("button", { type: "button", class: "rb-pin", hidden: true, tabindex: -1, "aria-label": `Take the pin off ${name}`,
      title: "Set by hand: the front leaves this layer as it is. A click, or P, takes the pin off",
      onclick: () => this.unpin([name]) });
    return row.pin;
  },

  setPins(names) {
    if (names.length === this.pinned.size && names.every(name => this.pinned.has(name))) return;
    this.pinned = new Set(names);
    this.showPins();
  },

  showPins() {
    for (const [name, row] of this.rows) if (row.pin.hidden === this.pinned.has(name)) row.pin.hidden = !row.pin.hidden;
    const count = this.pinned.size;
    this.pinLine.hidden = !count;
    if (count) this.pinLine.replaceChildren(`${counted(count, "layer")} pinned: set by hand. `,
      node("button", { type: "button", class: "rb-term", onclick: () => this.unpin([...this.pinned]) }, count === 1 ? "Take it off" : "Take all off"));
  },

  unpin(names) {
    const layers = names.filter(name => this.pinned.has(name));
    this.speak(layers.length ? `${counted(layers.length, "pin")} taken off.` : "There is no pin to take off.");
    if (!layers.length) return;
    this.setPins([...this.pinned].filter(name => !layers.includes(name)));
    this.act("unpin", { layers });
    this.drawTradeoff();
  },

  /* Who made what is committed; layers that were moved by hand are pinned, here at once and by the server. */
  doneBy(before, choices) {
    const { by } = this, gave = [...this.gave], moved = [...this.rows.keys()].filter(name => !sameChoice(before[name], choices[name]));
    if (by === "hand") this.setPins([...new Set([...this.pinned, ...moved.filter(name => !this.gave.has(name))])]);
    this.by = "hand";
    return { by, gave };
  },

  /* -- in words -- */

  figuresOf(point) {
    const { model } = this, costs = [words.count(point.bytes, "B"), `${words.count(point.multiplies)} multiplies`];
    if (point.value === null) return ["score not predicted", ...costs];
    if (!point.kind) return [`predicted ${words.range(model, point)}`, ...costs];
    const interval = point.low === null ? "" : ` (95 %: ${words.range(model, point)})`;
    return [`${words.score(model, point.value)}${interval}`, ...costs];
  },

  cardOf(point) {
    const { model } = this, [score, bytes, multiplies] = this.figuresOf(point), share = quantity => words.share(point[quantity] / model.dense[quantity]);
    const goals = point.kind ? "" : { kept: "✓ keeps the goals", open: "? may keep the goals", broken: "⚠ breaks a goal", "": "" }[this.keeps(point)];
    const samples = point.samples ? `${words.whole(point.samples)} samples` : "all samples";
    const head = point.kind ? `${{ search: "Found by a search", uniform: "The same share of every rank" }[point.kind] || "Measured here"} · ${samples} · ${point.depth === "no" ? "no" : point.depth || "its own"} correction`
      : `On the front${point.value === null ? "" : ` · most likely ${words.score(model, point.value)}`}`;
    return [head, score, `${bytes} · ${share("bytes")} of dense`, `${multiplies} · ${share("multiplies")}`, goals, ADOPTS].filter(Boolean);
  },

  showPoint(point) {
    const chart = this.tradeoffChart, full = chart._fullLayout;
    const card = this.pointCard || (this.pointCard = node("div", { class: "rb-point", "data-testid": "front-card", role: "tooltip" }));
    if (card.parentNode !== chart.parentNode) chart.after(card);
    card.replaceChildren(...this.cardOf(point).map(line => node("p", {}, line)));
    card.hidden = false;
    const x = full.xaxis._offset + full.xaxis.l2p(100 * point[this.axis] / this.model.dense[this.axis]), left = x > chart.offsetWidth / 2;
    Object.assign(card.style, { top: `${chart.offsetTop + 8}px`, left: left ? "" : `${chart.offsetLeft + x + 14}px`,
      right: left ? `calc(100% - ${chart.offsetLeft + x - 14}px)` : "" });
  },

  hidePoint() { if (this.pointCard) this.pointCard.hidden = true; },

  /* One line: what there is of the front, or why there is none. */
  sayFront() {
    const { points, whole } = this.front, { fronts } = this, goals = points.map(point => this.keeps(point));
    const shares = points.filter((_, i) => goals[i] === "kept").map(point => point[this.axis] / this.model.dense[this.axis]);
    const ends = shares.length ? ` ${words.share(shares[0])}${shares.length > 1 ? ` to ${words.share(shares[shares.length - 1])}` : ""} of dense` : "";
    const kept = !goals.some(Boolean) ? "" : shares.length ? `The goals are kept at${ends} (${this.axis}).`
      : goals.includes("open") ? "No plan of the front is sure to keep the goals." : "No plan of the front keeps the goals.";
    const line = !fronts ? "The front comes once layers are measured."
      : fronts.says && !points.length ? fronts.says
      : !points.length ? "The front is being computed."
      : !whole ? "Every layer is locked or pinned, so there is one plan: unlock a layer, or take a pin off."
      : points.length === 1 ? fronts.says || "The front is one plan: nothing that was measured makes the other layers smaller."
      : points.every(point => point.value === null) ? "No score can be predicted here; the front is by what its layers lose."
      : !this.isForThese() ? "From before the last pin, lock or free ranks: these plans fit it, better ones are being found."
      : [fronts.says, kept].filter(Boolean).join(" ");
    if (this.frontLine.textContent !== line) this.frontLine.textContent = this.frontLine.title = line;
    this.frontLine.hidden = !line;
    const at = goals.map((one, i) => one === "kept" ? i : -1).filter(i => i >= 0), last = Math.max(1, points.length - 1);
    this.walkSlider.style.setProperty("--rb-kept-from", `${at.length ? 100 * at[0] / last : 0}%`);
    this.walkSlider.style.setProperty("--rb-kept-to", `${at.length ? 100 * at[at.length - 1] / last : 0}%`);
  },

  /* -- in the chart -- */

  frontTraces(x, y) {
    const { colours, axis } = this, { points } = this.front, known = points.filter(point => point.value !== null);
    const goals = known.map(point => this.keeps(point)), across = known.map(point => x(point[axis]));
    const outline = [...known.map(p => y(p.high)), ...known.map(p => y(p.low)).toReversed()];
    const plans = this.measuredPlans, ends = (p, end) => p.low === null ? 0 : Math.abs(y(p[end]) - y(p.value));
    return [
      { x: [...across, ...across.toReversed()], y: outline, mode: "lines", fill: "toself", fillcolor: colours.faint, line: { width: 0 }, name: "band", hoverinfo: "skip" },
      { x: across, y: known.map(p => y(p.value)), mode: "lines+markers", name: "front", hoverinfo: "none", line: { color: colours.primary, width: 1.5 },
        marker: { size: 7, color: colours.primary, symbol: goals.map(one => ({ broken: "x-thin", open: "circle-open" })[one] || "circle"),
          line: { width: 1.5, color: colours.primary } } },
      { x: plans.map(p => x(p[axis])), y: plans.map(p => y(p.value)), mode: "markers", name: "measured", hoverinfo: "none",
        marker: { size: 7, color: colours.energy, symbol: plans.map(p => p.kind === "search" ? "triangle-up" : "square") },
        error_y: { type: "data", symmetric: false, array: plans.map(p => ends(p, "high")), arrayminus: plans.map(p => ends(p, "low")), color: colours.energy, thickness: 1, width: 3 } },
    ];
  },

  /* Scores that the chart makes room for: not those of plans of the front that lose nearly everything. */
  frontReach() {
    const values = this.front.points.map(point => point.value).filter(value => value !== null), { dense, higher } = this.model.metric;
    if (!values.length || dense === null) return [];
    const drops = values.map(value => higher ? dense - value : value - dense), most = Math.max(...drops);
    return values.filter((_, i) => drops[i] <= most / 2);
  },

  /* The floor, and what just fits into the device, across the chart. */
  goalAcross(y) {
    const { goals, colours } = this, line = { width: 1.5, color: colours.limit, dash: "dash" }, shapes = [];
    if (goals.floor !== null) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y(goals.floor), y1: y(goals.floor), line });
    const most = this.axis === "bytes" ? this.goalAt("bytes") : null;
    if (most > 0 && most < 1.04) shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: 100 * most, x1: 100 * most, line });
    return shapes;
  },

  /* A point of the chart that was hovered or clicked, where it is one of the front's or a plan that was measured. */
  hit({ points: [{ data, pointNumber }] }) {
    const known = this.front.points.filter(point => point.value !== null);
    return { front: known, measured: this.measuredPlans, uniform: this.uniformPlans }[data.name]?.[pointNumber] || null;
  },

  clicked(event) {
    this.takeUp(event.points[0]);
    this.hidePoint();
  },

  /* The plan of a point of the chart becomes the plan. */
  takeUp({ data, pointNumber, customdata }) {
    const point = this.hit({ points: [{ data, pointNumber }] });
    if (point && point.kind) this.act("adopt", { name: point.name });
    else if (point) this.adoptPoint(this.front.points.indexOf(point));
    else if (data.name === "snapshot" && customdata) this.act("restore", { name: customdata });
  },
});
