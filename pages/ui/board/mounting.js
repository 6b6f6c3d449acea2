/* A board is put on the page when the model's constants and Plotly are there, in whatever order they come. */

const models = {};
function setModel(model) { models[model.key] = model; window.dispatchEvent(new Event("rank-model")); }

function mount(root, data, send) {
  const model = models[data.model];
  if (!model || !window.Plotly) {
    root.__pending = () => mount(root, data, send);
    if (!root.__waiting) {
      root.__waiting = true;
      root.textContent = "Loading the board…";
      for (const name of ["rank-model", "plotly-ready"]) window.addEventListener(name, () => root.__pending && root.__pending());
    }
    return;
  }
  root.__pending = null;
  if (!root.__board || root.__board.model.key !== model.key) {
    if (root.__board) root.__board.leave();
    root.__board = new Board(root, model, send);
  }
  root.__board.send = send;
  root.__board.live();
  root.__board.update(data);
  for (const news of [window.__rankFeed, window.__rankFront, window.__rankLooks]) if (news) root.__board.feed(news);
}

window.RankBoard = { setModel, mount, totals, predict, flashBytes, models };
window.dispatchEvent(new Event("rank-model"));
