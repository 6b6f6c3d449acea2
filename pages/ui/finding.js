// What all pages can do by keyboard: ? lists the keys, Ctrl+K finds a layer, page, preset or device; and the layer that
// is selected, which the address names (?layer=...). What Python knows is in window.rankPicker (selecting.py).
(() => {
  if (window.rankFinding) return;
  window.rankFinding = true;

  const SHOWN = 50;
  const REST_MS = 250;
  const LETTERS = "rankExplorerLetters";
  const KEYS = [
    ["On every page", [
      ["?", "This list"],
      ["Ctrl K", "Find a layer, a page, a preset or a device"],
    ]],
    ["On Ranks", [
      ["J, K", "Next layer, layer before"],
      ["← →", "Rank of the layer one step down, up; Page keys ten steps, Home and End to the ends"],
      ["Enter", "Through the row: a second rank, then the field for an exact one; Escape leads back"],
      ["M", "Next method, dense the last"],
      ["L", "Lock the layer, or unlock it"],
      ["P", "Take off the pin of a layer that was set by hand"],
      ["S", "Take a snapshot"],
      ["Ctrl Z, Ctrl Shift Z", "Undo, redo"],
      ["Shift ↑ ↓", "Mark a range of layers; with the mouse Shift click on names, Ctrl click for one more"],
      ["Escape", "Mark none"],
    ]],
  ];

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const board = () => {
    const found = document.querySelector(".rb-root")?.__board;
    return found && !found.left && found.data ? found : null;
  };

  // ---- the selected layer -------------------------------------------------------------------------------------------

  const selected = () => board()?.picked ?? window.rankPicker?.data.selected ?? "";

  // Without an entry of its own in the browser's history.
  const write = () => {
    if (!window.rankPicker) return;
    const address = new URL(location.href), layer = selected();
    if ((address.searchParams.get("layer") ?? "") === layer) return;
    if (layer) address.searchParams.set("layer", layer); else address.searchParams.delete("layer");
    history.replaceState(history.state, "", address);
  };
  let resting = 0;
  window.addEventListener("rank-selected", () => {
    clearTimeout(resting);
    resting = setTimeout(write, REST_MS);
  });
  window.addEventListener("rank-mended", write);

  const select = (layer) => {
    if (board()) board().goTo(board().rows.get(layer));
    else window.rankPicker.pick({ kind: "layer", value: layer });
    speak(`Layer ${layer} is selected.`);
  };

  document.addEventListener("click", (event) => {
    const layer = event.target.closest?.("[data-pick-layer]")?.dataset.pickLayer;
    if (layer !== undefined && window.rankPicker) select(layer);
    const opens = event.target.closest?.("[data-opens]")?.dataset.opens;
    if (opens === "keys") showKeys();
    if (opens === "find") showFind();
    if (board() && event.target.closest?.('[data-testid="stPageLink"], [data-testid="stPageLink-NavLink"]')) board().post();
  }, true);

  // A picture that is chosen by a key is drawn anew, and its place in the page is the same.
  let chosen = null;
  document.addEventListener("keydown", (event) => {
    chosen = ["Enter", " "].includes(event.key) ? event.target.closest?.("[data-pick-layer]")?.dataset.pickLayer ?? null : null;
  });
  document.addEventListener("pointerdown", () => { chosen = null; });
  window.addEventListener("rank-mended", () => {
    if (chosen === null || document.activeElement !== document.body) return;
    [...document.querySelectorAll("[data-pick-layer][tabindex]")].find((one) => one.dataset.pickLayer === chosen)?.focus();
    chosen = null;
  });

  // Pictures of layers are one stop of the Tab key; arrows lead from one to the next.
  const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  document.addEventListener("keydown", (event) => {
    const here = event.target.closest?.("[data-pick-layer]"), by = ARROWS[event.key];
    if (!here || !by || event.ctrlKey || event.altKey || event.metaKey) return;
    const all = [...here.closest(".sm-grid, .cost-map").querySelectorAll("[data-pick-layer][tabindex]")], next = all[all.indexOf(here) + by];
    event.preventDefault();
    if (!next) return;
    here.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // ---- what is said -------------------------------------------------------------------------------------------------

  const said = make("p", { class: "rk-said", role: "status", "aria-live": "polite" });
  document.body.append(said);
  const speak = (text) => {
    if (board()) board().speak(text);
    else said.textContent = said.textContent === text ? `${text}\u00a0` : text;
  };

  // ---- dialogs ------------------------------------------------------------------------------------------------------

  const dialog = (name, ...children) => {
    const box = make("dialog", { class: "rk-dialog", "aria-label": name }, ...children);
    box.addEventListener("click", (event) => { if (event.target === box) box.close(); });   // beside it
    box.addEventListener("close", () => box.remove());
    return box;
  };
  const open = (box) => {
    document.body.append(box);
    box.style.colorScheme = getComputedStyle(document.querySelector('[data-testid="stApp"]') ?? document.body).colorScheme;
    box.showModal();
  };

  let keys = null;
  const showKeys = () => {
    if (!keys) {
      const close = make("button", { type: "button", class: "rk-close", "aria-label": "Close" }, "×");
      const letters = make("input", { type: "checkbox" });
      letters.checked = localStorage.getItem(LETTERS) !== "off";
      letters.addEventListener("change", () => localStorage.setItem(LETTERS, letters.checked ? "on" : "off"));
      close.addEventListener("click", () => keys.close());
      keys = dialog("Keys",
        make("div", { class: "rk-head" }, make("h2", {}, "Keys"), close),
        ...KEYS.flatMap(([where, rows]) => [make("h3", {}, where), make("dl", {}, ...rows.flatMap(([key, what]) =>
          [make("dt", {}, ...key.split(/(, | )/).map((part) => part.trim() && part !== "," ? make("kbd", {}, part.replace(",", "")) : part)), make("dd", {}, what)]))]),
        make("label", {}, letters, " Single letters are keys"),
        make("p", {}, "No key acts while somebody types into a field."));
    }
    open(keys);
  };

  // ---- what can be found --------------------------------------------------------------------------------------------

  // [kind, what it is called, what happens]
  const findable = () => {
    const picker = window.rankPicker, at = board();
    const pages = [...document.querySelectorAll('[data-testid="stSidebar"] a[data-testid="stPageLink-NavLink"]')];
    const known = new Set();
    return [
      ...(picker?.data.layers ?? []).map((name) => ["layer", name, () => select(name)]),
      ...pages.map((link) => ["page", link.innerText.trim().split("\n").pop(), () => link.click()])
        .filter(([, name]) => name && !known.has(name) && known.add(name)),
      ...(at ? [...at.presetSelect.options].slice(1).map((option) => ["preset", option.text, () => at.preset(option.value)]) : []),
      ...(at ? [["preset", "All dense", () => at.preset("dense")]] : []),
      ...(picker?.data.devices ?? []).map((name) => ["device", name, () => {
        picker.pick({ kind: "device", value: name });
        speak(`The device is ${name}.`);
      }]),
    ];
  };

  const matching = (all, text) => {
    const parts = text.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = all.filter(([kind, name]) => parts.every((part) => `${name} ${kind}`.toLowerCase().includes(part)));
    const [first = ""] = parts, starts = fits.filter(([, name]) => name.toLowerCase().startsWith(first));
    return [...starts, ...fits.filter((one) => !starts.includes(one))];
  };

  let find = null;
  const buildFind = () => {
    const field = make("input", {
      type: "text", role: "combobox", "aria-expanded": "true", "aria-controls": "rk-found", "aria-autocomplete": "list",
      "aria-label": "Find a layer, page, preset or device", placeholder: "Layer, page, preset or device", autocomplete: "off", spellcheck: "false",
    });
    const list = make("ul", { id: "rk-found", role: "listbox", "aria-label": "Found" });
    const count = make("p", { role: "status", class: "rk-count" });
    const box = dialog("Find", field, list, count);
    let all = [], shown = [], at = 0;
    const point = (to) => {
      at = Math.max(0, Math.min(shown.length - 1, to));
      [...list.children].forEach((item, number) => item.setAttribute("aria-selected", String(number === at)));
      if (shown.length) field.setAttribute("aria-activedescendant", `rk-found-${at}`); else field.removeAttribute("aria-activedescendant");
      list.children[at]?.scrollIntoView({ block: "nearest" });
    };
    const draw = () => {
      const fits = matching(all, field.value);
      shown = fits.slice(0, SHOWN);
      list.replaceChildren(...shown.map(([kind, name], number) =>
        make("li", { id: `rk-found-${number}`, role: "option" }, make("span", {}, name), " ", make("small", {}, kind))));
      list.hidden = !shown.length;
      field.setAttribute("aria-expanded", String(shown.length > 0));
      count.textContent = !fits.length ? "Nothing of that name." : fits.length > SHOWN ? `The first ${SHOWN} of ${fits.length.toLocaleString("en-US")}.` : `${fits.length} found.`;
      point(0);
    };
    const take = () => {
      const one = shown[at];
      box.close();
      if (one) one[2]();
    };
    field.addEventListener("input", draw);
    field.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
      if (by) point(at + by);
      else if (event.key === "Enter" && !event.isComposing) take();
      else return;
      event.preventDefault();
    });
    list.addEventListener("click", (event) => {
      const number = [...list.children].indexOf(event.target.closest("li"));
      if (number >= 0) { at = number; take(); }
    });
    return () => {
      all = findable();
      field.value = "";
      open(box);
      draw();
      field.focus();
    };
  };
  const showFind = () => { (find ??= buildFind())(); };

  // ---- keys ---------------------------------------------------------------------------------------------------------

  const TEXT = 'input:not([type=range], [type=checkbox], [type=radio], [type=button], [type=submit], [type=file]), textarea, [contenteditable=""], [contenteditable=true], [role=textbox], [role=combobox], [data-testid=stDataFrame] *';

  document.addEventListener("keydown", (event) => {
    const { target } = event;
    if (event.isComposing || document.querySelector("dialog[open]") || target.closest?.(TEXT)) return;
    const command = event.ctrlKey || event.metaKey, letter = !command && !event.altKey && !target.closest?.("select");
    const letters = localStorage.getItem(LETTERS) !== "off";
    const ofBoard = new CustomEvent("rank-key", { cancelable: true, detail: { key: event, letters: letter && letters } });
    let heard = true;
    if (letter && letters && event.key === "?") showKeys();
    else if (command && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "k") showFind();
    else heard = !window.dispatchEvent(ofBoard);
    if (!heard) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
})();
