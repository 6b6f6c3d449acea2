/* What a plan costs, what it is predicted to score, and which ranks a gesture asks for: arithmetic alone, every function
   one of its arguments. The core computes the same in Python; tests/test_board_closed_forms.py compares, under node. */

const QUANTITIES = ["bytes", "multiplies"];

/* ---- costs: the same numbers as lowrank_core's; whole ones, but for multiplies of a layer that rows are routed to -- */

function cost(layer, choice, quantity) {
  if (!choice) return layer.dense[quantity];
  const c = layer.methods[choice.method][quantity];
  const [a, b] = choice.rank;
  return choice.rank.length === 1 ? c[0] + c[1] * a : c[0] + c[1] * a + c[2] * b + c[3] * a * b;
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

function savesNothing(layer, choice) { return QUANTITIES.every(q => cost(layer, choice, q) >= layer.dense[q]); }

/* ---- ranks ------------------------------------------------------------------------------------------------------- */

/* Largest rank that is cheaper in bytes or in multiplies; zeros where no rank is. */
function usefulRank(layer, method) {
  const { bytes, multiplies } = layer.methods[method].even;
  const volume = rank => rank.reduce((a, b) => a * b, 1);
  return volume(bytes) >= volume(multiplies) ? bytes : multiplies;
}

function canSave(layer, method) { return usefulRank(layer, method).every(r => r > 0); }

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
function rankWithin(layer, method, multiplies) {
  const { top } = layer.methods[method];
  for (let percent = 100; percent > 1; percent--) {
    const rank = rankAt(top, percent / 100);
    if (cost(layer, { method, rank }, "multiplies") <= multiplies) return rank;
  }
  return rankAt(top, 0.01);
}

/* Ranks for layers that share a budget: their full ranks by one factor up to 4, the largest that costs at most `most`.
   Each of `sharing` is { layer, method, full }; the answer is one rank for each. */
function ranksWithin(sharing, most, quantity, multiple = 1) {
  const choices = sharing.map(({ method, full }) => ({ method, rank: full.slice() }));
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

/* The noise model: changes of the layers, less what later layers make good, add up; the table says what that much noise
   does to the score. Rough where a layer of the plan has not been measured. */
function predict(model, choices) {
  const { context } = model, chosen = model.layers.map(layer => choices[layer.name]);
  let variance = 0, rough = false, later = 0;
  for (let i = model.layers.length - 1; i >= 0; i--) {             // from the last, so that later ones are counted
    const layer = model.layers[i], choice = chosen[i];
    if (!choice) continue;
    if (!layer.methods[choice.method].points.length) rough = true;
    const alone = change(model, layer, choice), kept = context && context.kept[layer.name];
    const rest = Math.max(1, model.layers.length - 1 - i);
    variance += kept && alone > 0
      ? alone * Math.exp(later / rest * between(kept.map(k => k[0]), kept.map(k => k[1]), Math.log(alone))) : alone;
    later += 1;
  }
  return { value: afterNoise(model, (context ? context.scale : 1) * variance), rough };
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
  const below = { method: choice.method, rank };
  const saved = cost(layer, choice, quantity) - cost(layer, below, quantity);
  const lost = lookUp(model, change(model, layer, choice)) - lookUp(model, change(model, layer, below));
  return saved > 0 ? lost / saved : null;
}
