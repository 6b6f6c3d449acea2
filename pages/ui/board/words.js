/* Figures as people read them, in the words of pages/ui/words.py but for a space that does not break: the same figure
   reads the same on every page. tests/test_board_words.py compares, under node. */

const SPACE = "\u202f";

/* Of a number written with 30 digits too many: its leading digits where it lies half way and they end evenly, as Python
   rounds; else null, and JavaScript rounds the same. */
function evenAtHalf(long) {
  const kept = long.slice(0, -30).replace(/\.$/, "");
  return long.endsWith("5" + "0".repeat(29)) && Number(kept.slice(-1)) % 2 === 0 ? kept : null;
}

/* Python's f"{value:.{digits}f}". */
function fixed(value, digits) { return evenAtHalf(value.toFixed(digits + 30)) || value.toFixed(digits); }

/* Python's f"{value:.{digits}g}". */
function general(value, digits) {
  const [long, power] = value.toExponential(digits + 29).split("e"), even = evenAtHalf(long);
  const [mantissa, exponent] = even ? [even, power] : value.toExponential(digits - 1).split("e");
  const bare = text => text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  if (exponent < -4 || exponent >= digits)
    return `${bare(mantissa)}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
  return bare(Number(`${mantissa}e${exponent}`).toFixed(digits - 1 - exponent));
}

/* So many units of 1024 bytes, with two digits behind the point, fewer where it is large. */
function binary(scaled, round) {
  const ten = scaled < 100 ? 100 : scaled < 1000 ? 10 : 1, [whole, part = ""] = fixed(round(scaled * ten) / ten, 2).split(".");
  return (Number(whole).toLocaleString("en-US") + "." + part).replace(/\.?0+$/, "");
}

function binaryUnit(most) {
  return most < 2 ** 24 ? [2 ** 10, "KiB"] : most < 2 ** 34 ? [2 ** 20, "MiB"] : [2 ** 30, "GiB"];
}

const words = {
  /* Four digits and a prefix: 40.55 M, 1.079 MB. */
  count(value, unit = "") {
    const four = Number(general(value, 4));
    for (const [size, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      const scaled = four / size, whole = Math.abs(scaled);
      if (whole >= 1) return fixed(scaled, whole < 10 ? 3 : whole < 100 ? 2 : 1) + SPACE + prefix + unit;
    }
    return general(value, 6) + (unit && SPACE + unit);
  },

  /* Bytes with their unit, multiplies bare. */
  quantity(quantity, value) { return words.count(value, quantity === "bytes" ? "B" : ""); },

  /* Bytes beside those of a device, in KiB of 1024, MiB and GiB from 16 of them: lowrank_core.figures.of_device. */
  ofDevice(need, most) {
    const [unit, name] = binaryUnit(most);
    return `${binary(need / unit, Math.ceil)} of ${binary(most / unit, Math.floor)}${SPACE}${name}`;
  },

  /* How many times fewer (or more) than the dense network's. */
  timesFewer(now, dense, things) {
    if (now === dense) return `as many ${things} as dense`;
    if (!now || !dense) return `${now ? "more" : "no"} ${things}`;
    const ratio = now < dense ? dense / now : now / dense, text = fixed(ratio, ratio >= 9.95 ? 0 : ratio >= 1.05 ? 1 : 2);
    return text === "1.00" ? `about as many ${things} as dense` : `${text}x ${now < dense ? "fewer" : "more"} ${things}`;
  },

  /* The worst score that is allowed. */
  floor(model, worst) {
    const { share, higher } = model.metric;
    return `at ${higher ? "least" : "most"} ${general(share ? 100 * worst : worst, 6)}${share ? SPACE + "%" : ""}`;
  },

  /* A score beside the worst that is allowed, with as many digits as show which is better. */
  ofFloor(model, value, worst) {
    const { share } = model.metric, scale = share ? 100 : 1, side = (a, b) => Math.sign(a - b);
    for (let digits = share ? 2 : 4; digits < 10; digits++) {
      const text = share ? fixed(scale * value, digits) : general(scale * value, digits);
      if (side(Number(text), scale * worst) === side(scale * value, scale * worst)) return `${text} of ${words.floor(model, worst)}`;
    }
    return `${scale * value} of ${words.floor(model, worst)}`;
  },

  /* A figure without its unit. */
  bare(text) { return text.replace(`${SPACE}%`, ""); },

  /* A share as a percentage of three digits. */
  share(value) { return `${general(100 * value, 3)}${SPACE}%`; },

  /* The same with so many digits behind the point, where it moves under a thumb or may be next to nothing. */
  percent(value, digits) { return `${fixed(100 * value, digits)}${SPACE}%`; },

  /* A whole number with its thousands set apart. */
  whole(value) { return value.toLocaleString("en-US"); },

  /* A score in its own unit; null where answers are NaN or infinite. */
  score(model, value) { return value === null ? "not finite" : model.metric.share ? words.percent(value, 2) : general(value, 4); },

  /* The scores between which one is predicted to lie, with as many digits as they tell: "93 to 99 %". */
  range(model, { low, high }) {
    if (!model.metric.share) {
      const digits = [2, 3, 4].find(n => general(low, n) !== general(high, n)) || 4;
      const [from, to] = [low, high].map(end => general(end, digits));
      return from === to ? from : `${from} to ${to}`;
    }
    const [least, most] = [low, high].map(end => 100 * Math.min(1, Math.max(0, end)));
    const digits = most - least >= 4 ? 0 : most - least >= 0.4 ? 1 : 2;
    const [from, to] = [least, most].map(end => fixed(end, digits));
    return (from === to ? from : `${from} to ${to}`) + `${SPACE}%`;
  },

  /* A change of the score, with its sign; of one that is no share a small one with two digits, a large one with four. */
  signed(model, value) {
    const { share } = model.metric, shift = share ? 100 * value : value, size = Math.abs(shift);
    const text = share || !shift || (size >= 0.1 && size < 1e5) ? fixed(shift, 2) : general(shift, size < 0.1 ? 2 : 4);
    return `${text.startsWith("-") && Number(text) ? "−" : "+"}${text.replace(/^-/, "").replaceAll("-", "−")}`;
  },

  /* How far the score itself has moved against the dense network when so much is lost, with the interval if known. */
  change(model, { drop, drop_low: low, drop_high: high, samples, not_finite: broken, why_none: why }) {
    if (broken) return `⚠ answers with NaN or infinity on ${words.whole(broken)} of ${words.whole(samples)} samples`;
    const line = `${words.signed(model, against(model, drop))}${model.metric.share ? " points" : ""} against dense`;
    if (typeof low !== "number" || typeof high !== "number") {
      return samples > 0 ? `${line} (${why ?? "too few samples that differ for an interval"})` : line;
    }
    const ends = [low, high].map(end => against(model, end)).sort((a, b) => a - b);
    return `${line} (95 %: ${ends.map(end => words.signed(model, end)).join(" to ")})`;
  },
};
