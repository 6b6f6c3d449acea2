// What Streamlit leaves to a page: places to drop files that have a role, a side bar that does not stay over a phone,
// and words of our own where the server is gone.
(() => {
  if (window.rankExplorerPage) return;
  window.rankExplorerPage = true;

  const NARROW_PX = 768;
  const GONE = [
    [/^Streamlit server is not responding.*/s, "Rank Explorer does not answer. Start it again in its terminal: this page goes on by itself, and the plan is saved."],
    [/^Is Streamlit still running\?.*/s, "Rank Explorer does not answer. Start it again in its terminal as before: this page goes on by itself, and the plan is saved."],
    [/^streamlit run yourscript\.py$/, "streamlit run app.py"],
  ];

  const sayGone = (dialog) => {
    const texts = document.createTreeWalker(dialog, NodeFilter.SHOW_TEXT);
    for (let text = texts.nextNode(); text; text = texts.nextNode()) {
      const [, ours] = GONE.find(([theirs]) => theirs.test(text.nodeValue.trim())) ?? [];
      if (ours) text.nodeValue = ours;
    }
  };

  const mend = () => {
    waits = false;
    // a name and a place in the order of focus belong to a group, not to mere presentation
    const places = 'section[role="presentation"][data-testid="stFileUploaderDropzone"]';
    document.querySelectorAll(places).forEach((place) => place.setAttribute("role", "group"));
    // what may be scrolled can be reached by keyboard
    document.querySelectorAll('[data-testid="stCode"] pre:not([tabindex])').forEach((code) => { code.tabIndex = 0; });
    // an open list hangs on the body, outside all landmarks
    document.querySelectorAll('[data-trigger="ComboBox"]:not([role])').forEach((list) => {
      list.setAttribute("role", "region");
      list.setAttribute("aria-label", "Choices");
    });
    document.querySelectorAll('[role="dialog"]').forEach(sayGone);
    window.dispatchEvent(new Event("rank-mended"));
  };

  let waits = false;
  const isOurs = (record) => record.target.closest?.(".rb-root");  // the board changes at every step of a thumb
  new MutationObserver((records) => {
    if (waits || records.every(isOurs)) return;
    requestAnimationFrame(mend);
    waits = true;
  }).observe(document.body, { childList: true, subtree: true });
  mend();

  document.addEventListener("click", (event) => {
    if (window.innerWidth > NARROW_PX || !event.target.closest?.('[data-testid="stSidebar"] a')) return;
    document.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click();
  });
})();
