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

  // The title says when a job is over until the person looks: at its page, or at the tab where that page is open.
  const ran = new Set();
  const unseen = new Map();
  let usualTitle = document.title, ourTitle = "";
  const isLookedAt = () => document.visibilityState === "visible" && document.hasFocus();
  const entitle = () => {
    const said = new Map();
    document.querySelectorAll("[data-job]").forEach(({ dataset }) => {
      const { job, jobState, jobPage, jobHere } = dataset;
      const name = jobPage === "Rank Explorer" ? "Opening" : jobPage;
      const says = { over: `✓ ${name} done`, failed: `✗ ${name} failed` }[jobState];
      if (jobState === "running") ran.add(job);
      else if (says && jobHere === "0") said.set(job, says);
      else if (ran.delete(job) && says && !isLookedAt()) unseen.set(job, says);
    });
    const [says] = [...said.values(), ...unseen.values()].slice(-1);
    if (document.title !== ourTitle) usualTitle = document.title;
    ourTitle = says ? `${says} · Rank Explorer` : "";
    if (document.title !== (ourTitle || usualTitle)) document.title = ourTitle || usualTitle;
  };
  const look = () => {
    if (!isLookedAt()) return;
    unseen.clear();
    entitle();
  };
  window.addEventListener("focus", look);
  document.addEventListener("visibilitychange", look);
  new MutationObserver(entitle).observe(document.querySelector("title"), { childList: true });

  // What a button starts is brought on the screen together with the button.
  let started = 0;
  const LET_SECONDS = 3;
  const bringOnScreen = () => {
    const bar = document.querySelector(".st-key-start_bar")?.parentElement;
    if (!bar || Date.now() > started + LET_SECONDS * 1000) return;
    const top = document.querySelector(".st-key-outcome")?.getBoundingClientRect().top ?? 0;
    if (top > window.innerHeight / 2) bar.scrollIntoView({ block: "start" });
  };
  ["wheel", "touchmove", "keydown"].forEach((kind) => {
    window.addEventListener(kind, () => { started = 0; }, { passive: true });
  });

  const mend = () => {
    waits = false;
    entitle();
    bringOnScreen();
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
    if (event.target.closest?.('.st-key-start_bar [data-testid="stBaseButton-primary"]')) {
      started = Date.now();
      bringOnScreen();
    }
    if (window.innerWidth > NARROW_PX || !event.target.closest?.('[data-testid="stSidebar"] a')) return;
    document.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click();
  });
})();
