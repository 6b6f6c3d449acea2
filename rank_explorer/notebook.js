/* The board in a notebook: what the page does for it in the dashboard, here the widget does. Its Python side holds the
   plan; constants, board, survey and front come as they change, questions about a held thumb go out and back by number. */

function render({ model, el }) {
  const root = document.createElement("div"), questions = new Map();
  root.className = "rb-root rb-notebook";
  el.append(root);
  let number = 0;
  const tell = content => model.send(content);
  const inquire = (choices, signal) => new Promise((answer, refuse) => {
    const mine = number += 1;
    questions.set(mine, answer);
    signal.addEventListener("abort", () => {
      if (questions.delete(mine)) tell({ kind: "called off", question: mine });
      refuse(new DOMException("called off", "AbortError"));
    });
    tell({ kind: "question", question: mine, choices });
  });
  const feed = name => { const news = model.get(name); if (news && root.__board) root.__board.feed(news); };
  const show = () => {
    RankBoard.mount(root, model.get("board"), (kind, value) => tell({ kind, ...value }));
    root.__board.inquire = inquire;
  };
  const hear = message => {
    const answer = questions.get(message.question);
    if (!answer) return;
    questions.delete(message.question);
    answer(message.answer);
  };
  const fed = ["survey", "front"].map(name => [`change:${name}`, () => feed(name)]);
  RankBoard.setModel(model.get("constants"));
  show();
  fed.forEach(([event, heard]) => { heard(); model.on(event, heard); });
  model.on("change:board", show);
  model.on("msg:custom", hear);
  return () => {
    fed.forEach(([event, heard]) => model.off(event, heard));
    model.off("change:board", show);
    model.off("msg:custom", hear);
    root.__board.leave();
  };
}

export default { render };
