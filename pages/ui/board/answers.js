/* Answers that move: a dozen evaluation samples, those whose answer changed first, with what both networks say. */

const SVG = "http://www.w3.org/2000/svg";
const LINE_POINTS_HIGH = 100;                                    // pages/ui/answers.py: HEIGHT

Object.assign(Board.prototype, {
  buildStrip() {
    this.stripSays = node("p", { class: "rb-says", "data-testid": "answers-summary" });
    this.stripAbout = node("p", { class: "rb-says" });
    this.stripList = node("ul", { class: "rb-strip", role: "list", "aria-label": "Samples and what both networks answer" });
    return [this.stripSays, this.stripAbout, this.stripList];
  },

  drawStrip() {
    const { strip } = this, says = this.panelSays(strip, this.stripRev, this.stripDepth, strip && strip.summary);
    if (this.stripSays.textContent !== says) this.stripSays.textContent = says;
    if (this.stripOf === strip || !strip) return;
    this.stripOf = strip;
    this.stripAbout.textContent = strip.about || "";
    this.stripList.dataset.form = strip.form || "";
    this.stripList.replaceChildren(...(strip.shown || []).map(sampleCard));
  },
});

function sampleCard(sample) {
  const card = node("li", { class: "rb-sample", "data-sample": sample.sample, "data-changed": sample.changed });
  card.append(samplePicture(sample));
  if (sample.dense) {
    const [[was, wasSure], [now, nowSure]] = [sample.dense, sample.ours];
    card.append(node("span", { class: "rb-answer", "aria-hidden": "true" }, node("b", {}, was === now ? now : `${was} → ${now}`)));
    if (nowSure) card.append(node("span", { class: "rb-answer", "aria-hidden": "true" }, wasSure === nowSure ? nowSure : `${words.bare(wasSure)} → ${nowSure}`));
    const said = (answer, sure) => sure ? `${answer}, ${sure}` : answer;
    card.append(node("span", { class: "rb-spoken" }, `${sample.changed ? "Changed. " : ""}Dense: ${said(was, wasSure)}. Now: ${said(now, nowSure)}.`));
  }
  if (sample.note) card.append(node("span", { class: "rb-answer" }, sample.note));
  for (const [place, was, now] of sample.places || [])
    card.append(node("span", { class: "rb-answer", title: `place ${place + 1}` }, node("s", {}, was), " → ", node("b", {}, now)));
  if (sample.left) card.append(node("span", { class: "rb-answer" }, `and ${sample.left} more`));
  if (sample.target !== undefined) card.append(node("span", { class: "rb-answer" }, `is ${sample.target}`));
  return card;
}

function samplePicture({ sample, image, lines, text, numbers }) {
  const label = `sample ${sample}`;
  if (image) return node("img", { src: image, alt: label });
  if (!lines) return node("p", { class: "rb-text", title: label }, text || numbers || "");
  const picture = document.createElementNS(SVG, "svg");
  const widest = Math.max(1, ...lines.map(line => line.length - 1));
  for (const [name, value] of [["viewBox", `0 0 ${widest} ${LINE_POINTS_HIGH}`], ["preserveAspectRatio", "none"], ["role", "img"], ["aria-label", label]])
    picture.setAttribute(name, value);
  for (const line of lines) {
    const drawn = document.createElementNS(SVG, "polyline");
    drawn.setAttribute("points", line.map((y, x) => `${x},${y}`).join(" "));
    picture.append(drawn);
  }
  return picture;
}
