/* What a plan costs, what it is predicted to score, and which ranks a gesture asks for: arithmetic alone, every function
   one of its arguments. The core computes the same in Python; tests/test_board_closed_forms.py compares, under node. */

const QUANTITIES = ["bytes", "multiplies"];

/* ---- costs: the same numbers as lowrank_core's; whole ones, but for multiplies of a layer that rows are routed to -- */

/* A method as its factors are stored: with free ranks there are squares in the closed form, and break-even is higher. */
function form(layer, method, free) { const m = layer.methods[method]; return free && m.free ? m.free : m; }

function cost(layer, choice, quantity) {
  if (!choice) return layer.dense[quantity];
  const c = form(layer, choice.method, choice.free)[quantity];
  const [a, b] = choice.rank;
  if (choice.rank.length === 1) return c[0] + c[1] * a + (c.length > 2 ? c[2] * a * a : 0);
  return c[0] + c[1] * a + c[2] * b + c[3] * a * b + (c.length > 4 ? c[4] * a * a + c[5] * b * b : 0);
}

function totals(model, choices) {
  const sum = { bytes: model.rest.bytes, multiplies: model.rest.multiplies };
  for (const layer of model.layers)
    for (const q of QUANTITIES) sum[q] += cost(layer, choices[layer.name] || null, q);
  sum.multiplies = halfUp(sum.multiplies);
  return sum;
}

/* The whole number next to a sum of means, of two as near the larger one; a half stays one however it was added up. */
function halfUp(value) { return Math.floor(rounded(value * 2 ** 20) / 2 ** 20 + 0.5); }

/* Bytes of all parameters and buffers of the compressed network in a number format. */
function flashBytes(model, choices, number) {
  const { size, dense, plain } = model.formats[number];
  let total = dense;
  for (const layer of model.layers) {
    const choice = choices[layer.name];
    if (!choice) continue;
    const stored = plain ? { ...choice, free: false } : choice, bytes = cost(layer, stored, "bytes");
    total += (bytes / layer.itemsize - layer.parameters) * (size || layer.itemsize)
      + form(layer, choice.method, stored.free).orders - (layer.gone[number] || 0);
  }
  return rounded(total);
}

/* What becomes of a limit: "kept", "broken", or "open" where an interval holds both. */
function judged(least, most, limit, higher) {
  const [best, worst] = higher ? [most, least] : [least, most];
  const within = value => higher ? value >= limit : value <= limit;
  return within(worst) ? "kept" : within(best) ? "open" : "broken";
}

function savesNothing(layer, choice) { return QUANTITIES.every(q => cost(layer, choice, q) >= layer.dense[q]); }

/* ---- ranks ------------------------------------------------------------------------------------------------------- */

/* Largest rank that is cheaper in bytes or in multiplies; zeros where no rank is. */
function usefulRank(layer, method, free = false) {
  const { bytes, multiplies } = form(layer, method, free).even;
  const volume = rank => rank.reduce((a, b) => a * b, 1);
  return volume(bytes) >= volume(multiplies) ? bytes : multiplies;
}

function canSave(layer, method, free = false) { return usefulRank(layer, method, free).every(r => r > 0); }

/* The whole number next to it; of two as near the even one, as Python rounds: the one rule for ranks here. */
function rounded(value) {
  const below = Math.floor(value), half = value - below === 0.5;
  return half ? below + below % 2 : Math.round(value);
}

/* The same share of the maximum along every axis; at least 1. */
function rankAt(top, share) { return top.map(m => Math.min(m, Math.max(1, rounded(share * m)))); }

/* The nearest rank, along one axis, that a layer can have: a multiple of `multiple`, or the maximum. */
function allowedRank(top, rank, multiple = 1) {
  const inside = Math.min(top, Math.max(1, rounded(rank)));
  return multiple === 1 ? inside : Math.min(top, Math.max(multiple, rounded(inside / multiple) * multiple));
}

/* Smallest rank along one axis that keeps this share of the energy. */
function energyRank(tail, top, keep) {
  let low = 1, high = top;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (between(tail.ranks, tail.lost, middle) <= 1 - keep + 1e-12) high = middle; else low = middle + 1;
  }
  return low;
}

/* The largest rank, of a hundred shares of the maximum, that multiplies no more than this; else the smallest of them. */
function rankWithin(layer, method, multiplies, free = false) {
  const { top } = layer.methods[method];
  for (let percent = 100; percent > 1; percent--) {
    const rank = rankAt(top, percent / 100);
    if (cost(layer, { method, rank, free }, "multiplies") <= multiplies) return rank;
  }
  return rankAt(top, 0.01);
}

/* Ranks for layers that share a budget: their full ranks by one factor up to 4, the largest that costs at most `most`.
   Each of `sharing` is { layer, method, full, free }; the answer is one rank for each. */
function ranksWithin(sharing, most, quantity, multiple = 1) {
  const choices = sharing.map(({ method, full, free }) => ({ method, free, rank: full.slice() }));
  const scale = (i, factor) => {                                   // in place: thousands of these make a frame
    const { layer, method, full } = sharing[i], { top } = layer.methods[method], choice = choices[i];
    for (let axis = 0; axis < full.length; axis++)
      choice.rank[axis] = allowedRank(top[axis], full[axis] * factor, multiple);
    return choice;
  };
  const fits = factor => {
    let sum = 0;
    for (let i = 0; i < sharing.length; i++) {
      const { layer } = sharing[i], choice = scale(i, factor);
      sum += cost(layer, savesNothing(layer, choice) ? null : choice, quantity);
      if (sum > most) return false;
    }
    return true;
  };
  let low = 0, high = 4;
  if (fits(high)) low = high;
  for (let i = 0; i < 16 && low < high; i++) {
    const middle = (low + high) / 2;
    if (fits(middle)) low = middle; else high = middle;
  }
  return sharing.map((_, i) => scale(i, low).rank);
}

/* ---- errors of weights ------------------------------------------------------------------------------------------- */

/* Straight between the knots, constant beyond them. */
function between(knots, values, x) {
  let low = 0, high = knots.length - 1;
  if (x <= knots[0]) return values[0];
  if (x > knots[high]) return values[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (knots[middle] < x) low = middle; else high = middle;
  }
  return values[low] + (values[high] - values[low]) * (x - knots[low]) / (knots[high] - knots[low]);
}

/* The curves of a method's axes. Only the default method's come with the model; until another one is in use and Python
   has factorised it, the default's stand in, stretched to its ranks. */
function tailsOf(layer, name) {
  const method = layer.methods[name];
  if (method.tails) return method.tails;
  const [known] = layer.methods[layer.default].tails, last = known.ranks[known.ranks.length - 1];
  return method.top.map(top => {
    const stretch = r => 1 + (r - 1) * (top - 1) / Math.max(1, last - 1);
    return { ranks: known.ranks.map(r => r ? stretch(r) : 0), lost: known.lost.map(l => l / method.top.length), sigma_ranks: [], sigma: [] };
  });
}

/* Squared relative weight error; the tails of two axes add (bound of the higher-order SVD). */
function errorSquared(layer, choice) {
  if (!choice) return 0;
  const tails = tailsOf(layer, choice.method);
  let sum = 0;
  choice.rank.forEach((r, axis) => { sum += between(tails[axis].ranks, tails[axis].lost, r); });
  return Math.min(1, sum);
}

/* ---- the predicted score ----------------------------------------------------------------------------------------- */

/* Mean squared change of the outputs when this layer alone is compressed: measured at a few ranks, in between along
   the closed-form error; without measurements the rough proportion. */
function change(model, layer, choice) {
  if (!choice) return 0;
  const e = errorSquared(layer, choice);
  if (e <= 0) return 0;
  const { points } = layer.methods[choice.method];
  if (!points.length) return model.prediction.rough * e;
  const x = Math.log(e), first = points[0], last = points[points.length - 1];
  if (x <= first[0]) return Math.exp(first[1] + (x - first[0]));
  if (x >= last[0]) return Math.exp(last[1] + (x - last[0]));
  const after = points.findIndex(p => p[0] >= x), [x0, y0] = points[after - 1], [x1, y1] = points[after];
  return Math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0));
}

/* The score under noise of a variance; null without a table. */
function lookUp(model, variance) {
  const t = model.prediction.table;
  if (!t) return null;
  const x = variance > 0 ? Math.log(variance) : t.log_variance[0];
  return between(t.log_variance, t.score, x);
}

/* The table is made from some of the samples, so only its differences count. */
function afterNoise(model, variance) {
  const t = model.prediction.table;
  return t && model.metric.dense !== null ? model.metric.dense + lookUp(model, variance) - t.score[0] : null;
}

/* What each layer of a plan changes, less what later layers make good, and how far off the logarithm of their sum may be
   because nothing was measured near. Rough where a layer of the plan has not been measured at all. */
function planChanges(model, choices) {
  const { context } = model, { constants } = model.prediction;
  const each = new Array(model.layers.length).fill(0), doubts = each.slice();
  let rough = false, later = 0;
  for (let i = each.length - 1; i >= 0; i--) {                     // from the last, so that later ones are counted
    const layer = model.layers[i], choice = choices[layer.name];
    if (!choice) continue;
    const { points } = layer.methods[choice.method], kept = context && context.kept[layer.name];
    if (!points.length) rough = true;
    each[i] = change(model, layer, choice);
    if (each[i] > 0) {
      const e = Math.log(errorSquared(layer, choice));
      doubts[i] = points.reduce((least, [x]) => Math.min(least, constants.doubt * Math.abs(e - x)), constants.unknown);
      const share = later / Math.max(1, each.length - 1 - i);
      if (kept) each[i] *= Math.exp(share * between(kept.map(k => k[0]), kept.map(k => k[1]), Math.log(each[i])));
    }
    later += 1;
  }
  const sum = each.reduce((a, b) => a + b, 0);
  return { each, sum, rough, doubt: Math.hypot(...each.map((c, i) => c / (sum || 1) * doubts[i])) };
}

/* The predicted score with the interval that comes from plans that were measured: lowrank_core.predict.interval, whose
   words these are. Null where nothing can be told. */
function predict(model, choices) {
  const changes = planChanges(model, choices), { constants, table: t } = model.prediction;
  const known = (model.context || model.prediction).residuals, { dense } = model.metric;
  if (!t || dense === null) return { value: null, low: null, high: null, rough: changes.rough };
  if (!(changes.sum > 0)) return { value: dense, low: dense, high: dense, rough: changes.rough };
  const scaled = changes.each.map(c => known.scale * c), sum = known.scale * changes.sum;
  const ends = [t.log_variance[0], t.log_variance[t.log_variance.length - 1]];
  const plan = {
    log: Math.min(ends[1] + constants.beyond, Math.max(ends[0], Math.log(sum))),
    severity: scaled.map(c => Math.log1p(c / (constants.slight * Math.exp(known.centre)))),
    share: scaled.map(c => c / sum),
  };
  const kernel = known.logs.map((log, i) =>
    inCommon(constants, known, plan, { log, severity: known.severities[i], share: known.shares[i] }));
  const mean = plan.log + kernel.reduce((total, k, i) => total + k * known.weights[i], 0);
  const told = kernel.reduce((total, k, i) => total + k * kernel.reduce((row, other, j) => row + other * known.inverse[i][j], 0), 0);
  const deviation = Math.sqrt(Math.max(0, inCommon(constants, known, plan, plan) + changes.doubt ** 2 - told));
  const sign = t.score[t.score.length - 1] <= t.score[0] ? 1 : -1, drops = t.score.map(score => sign * (t.score[0] - score));
  const knots = [...t.log_variance, ends[1] + constants.beyond];
  const lost = z => between(knots, [...drops, known.most], z);
  const middle = lost(mean), reach = known.reach * deviation;
  const grain = known.reach * (known.grain + constants.grain_of_loss * middle);
  const shift = known.offset * (known.most > 0 ? 1 - middle / known.most : 1);
  const score = loss => dense - sign * (loss + shift);
  const outer = [middle - Math.hypot(middle - lost(mean - reach), grain), middle + Math.hypot(lost(mean + reach) - middle, grain)];
  const [low, high] = outer.map(score).sort((a, b) => a - b);
  return { value: score(middle), low, high, rough: changes.rough };
}

/* What the residuals of two plans have in common. */
function inCommon(constants, known, one, other) {
  let shares = 0, squares = 0;
  for (let i = 0; i < one.share.length; i++) {
    shares += one.share[i] * other.share[i];
    squares += (one.severity[i] - other.severity[i]) ** 2;
  }
  const apart = Math.sqrt(squares), matern = d => (1 + Math.sqrt(3) * d) * Math.exp(-Math.sqrt(3) * d);
  return constants.common ** 2 + constants.slope ** 2 * (one.log - known.centre) * (other.log - known.centre)
    + constants.shares ** 2 * shares + constants.similar ** 2 * matern(apart / constants.far)
    + known.own ** 2 * matern(apart / constants.near);
}

/* How the score itself moves when so much is lost, and the other way round: a drop with its sign as people read it. */
function against(model, drop) { return model.metric.higher ? -drop : drop; }

/* What the score loses by this layer alone; 0 where it gains or nothing can be told. */
function lossAlone(model, layer, choice) {
  const alone = choice ? afterNoise(model, change(model, layer, choice)) : null;
  return alone === null ? 0 : Math.max(0, against(model, alone - model.metric.dense));
}

/* Score lost per byte or per multiply saved by the next step down, a twentieth of the maximum; null if it saves none. */
function exchangeRate(model, layer, choice, quantity) {
  const { top } = layer.methods[choice.method];
  const rank = choice.rank.map((r, i) => Math.max(1, r - Math.max(1, rounded(top[i] / 20))));
  const below = { method: choice.method, rank, free: choice.free };
  const saved = cost(layer, choice, quantity) - cost(layer, below, quantity);
  const lost = lookUp(model, change(model, layer, choice)) - lookUp(model, change(model, layer, below));
  return saved > 0 ? lost / saved : null;
}
