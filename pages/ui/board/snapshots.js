/* Snapshots: plans that are kept under a name, with a note, a date and the score that was measured of them. A plan is
   kept once; one that was removed is brought back with a click. */

const LABEL_LETTERS = 16;                                        // of a snapshot's name in the chart
const LETTER_PIXELS = 6.5, LINE_PIXELS = 14;                     // of a label there, about
const LABEL_PLACES = [["bottom center", -0.5, 0.6], ["top center", -0.5, -1.6], ["middle right", 0.08, -0.5], ["middle left", -1.08, -0.5]];
const SHOWN_REMOVED = 3;

/* A name as Plotly writes it: letters, never tags. */
function plotText(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/* Where labels of some width can stand beside their points without touching another one; null where they cannot. */
function labelPlaces(points, widths, [width, height]) {
  const taken = points.map(({ x, y }) => [x - 5, y - 5, x + 5, y + 5]);
  const free = box => box[0] >= 0 && box[2] <= width && box[1] >= 0 && box[3] <= height + LINE_PIXELS
    && !taken.some(other => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
  const places = new Array(points.length).fill(null);
  for (let i = points.length - 1; i >= 0; i--)                   // the latest first
    for (const [place, across, down] of LABEL_PLACES) {
      const left = points[i].x + across * widths[i] + (down === -0.5 ? 8 * Math.sign(across + 0.5) : 0), top = points[i].y + down * LINE_PIXELS;
      const box = [left, top, left + widths[i], top + LINE_PIXELS];
      if (!free(box)) continue;
      taken.push(box);
      places[i] = place;
      break;
    }
  return places;
}

/* When something was made: the hour of a day that is today, else the day, too. */
function whenText(seconds, now = new Date()) {
  if (seconds === null || seconds === undefined) return "";
  const then = new Date(1000 * seconds), clock = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (then.toDateString() === now.toDateString()) return clock;
  const year = then.getFullYear() === now.getFullYear() ? {} : { year: "numeric" };
  return `${then.toLocaleDateString([], { day: "numeric", month: "short", ...year })}, ${clock}`;
}

function samePlan(one, other) {
  const names = Object.keys(one), says = choice => choice && `${choice.method} ${choice.rank.join()} ${Boolean(choice.free)}`;
  return names.length === Object.keys(other).length && names.every(name => says(one[name]) === says(other[name]));
}

Object.assign(Board.prototype, {
  buildSnapshots() {
    this.snapshotName = node("input", { type: "text", placeholder: "Name", "aria-label": "Snapshot name", maxlength: 40 });
    this.snapshotList = node("ul", { class: "rb-snapshots" });
    this.removedLine = node("p", { class: "rb-removed", hidden: true });
    const keep = event => { event.preventDefault(); this.keepSnapshot(); };
    return [
      node("form", { class: "rb-snap", onsubmit: keep }, this.snapshotName,
        node("button", { type: "submit", title: "Keep this plan as a point to come back to" }, "Snapshot")),
      this.snapshotList, this.removedLine];
  },

  /* The plan as it stands, under the name that was typed; one that is kept already is not kept again. */
  keepSnapshot() {
    const choices = this.choices(), held = this.data.snapshots.find(s => samePlan(s.choices, choices));
    if (held) {
      this.status.textContent = `“${held.name}” holds this plan already.`;
      return;
    }
    this.act("snapshot", { name: this.snapshotName.value });
    this.snapshotName.value = "";
  },

  snapshotFigures(s) {
    return `${this.measuredText(s) || "not measured"} · ${words.count(s.bytes, "B")} · ${words.count(s.multiplies)}`;
  },

  /* A score, and with which correction it was measured; "" where there is none. */
  measuredText({ score, not_finite, how }) {
    return score === null && !not_finite ? "" : `${words.score(this.model, score)}${how ? ` ${how}` : ""}`;
  },

  drawSnapshots() {
    const { snapshots, removed } = this.data, shown = JSON.stringify([snapshots, removed, this.editing]);
    if (shown === this.snapshotsShown) return;                   // what is typed into a note stays
    this.snapshotsShown = shown;
    this.snapshotList.replaceChildren(...snapshots.toReversed().map(s => s.name === this.editing ? this.snapshotForm(s) : this.snapshotRow(s)));
    this.removedLine.hidden = removed.length === 0;
    const back = name => node("button", { type: "button", "aria-label": `Bring snapshot ${name} back`, onclick: () => this.act("bring back", { name }) }, `Undo: ${name}`);
    this.removedLine.replaceChildren(removed.length === 1 ? "Removed " : `${removed.length} removed `, ...removed.slice(0, SHOWN_REMOVED).map(back));
  },

  snapshotRow(s) {
    const figures = this.snapshotFigures(s), when = whenText(s.seconds);
    return node("li", {},
      node("button", { type: "button", title: "Restore this plan", onclick: () => this.act("restore", { name: s.name }) }, s.name),
      node("span", { title: [s.note, figures, when].filter(Boolean).join("\n") }, s.note ? node("em", {}, s.note) : "",
        `${s.note ? " · " : ""}${s.holds ? "this plan · " : ""}${figures}${when ? ` · ${when}` : ""}`),
      node("button", { type: "button", class: "rb-edit", "aria-label": `Rename snapshot ${s.name}, or note something`, title: "Name and note",
        onclick: () => { this.editing = s.name; this.drawSnapshots(); this.snapshotList.querySelector("form input").select(); } }, "✎"),
      node("button", { type: "button", class: "rb-remove", "aria-label": `Remove snapshot ${s.name}`, title: "Remove",
        onclick: () => { this.status.textContent = `Removed “${s.name}”; it can be brought back.`; this.act("remove", { name: s.name }); } }, "×"));
  },

  snapshotForm(s) {
    const name = node("input", { type: "text", maxlength: 40, value: s.name, "aria-label": "New name", placeholder: "Name" });
    const note = node("input", { type: "text", maxlength: 280, value: s.note, "aria-label": "Note", placeholder: "Note" });
    const close = () => { this.editing = null; this.drawSnapshots(); };
    const done = event => {
      event.preventDefault();
      close();
      this.act("describe", { name: s.name, new: name.value, note: note.value });
    };
    const keys = event => { if (event.key === "Escape") { event.stopPropagation(); close(); } };
    return node("li", {}, node("form", { class: "rb-snap", onsubmit: done, onkeydown: keys }, name, note,
      node("button", { type: "submit" }, "Save"), node("button", { type: "button", onclick: close }, "Cancel")));
  },

  snapshotSays(s) { return plotText(s.how ? `${s.name}, ${s.how}` : s.name); },

  /* Names beside the points of the chart, as many as stand there without touching each other. */
  snapshotLabels({ x, y, customdata }, [low, high]) {
    const width = this.tradeoffChart.clientWidth - 58, height = 156;
    const points = x.map((across, i) => ({ x: width * across / 104, y: height * (high - y[i]) / (high - low) }));
    const short = customdata.map(name => name.length > LABEL_LETTERS ? `${name.slice(0, LABEL_LETTERS - 1)}…` : name);
    const places = labelPlaces(points, short.map(name => LETTER_PIXELS * name.length), [width, height]);
    return { text: short.map((name, i) => places[i] ? plotText(name) : ""), textposition: places.map(place => place || "bottom center") };
  },
});
