// Labeling: a grid, a palette, and keys for everything. What is typed is kept until the server has it.
const MOST_KEYS = 9;
const PAGE_SIZES = [10, 20, 50, 100, 200];
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8, 12, 16];
const NO_LABEL = null;

/** Sends changes one after another; those that are not acknowledged survive a reload of the page. */
function outbox(ask, name, told) {
  const waiting = new Map(JSON.parse(sessionStorage.getItem(name) ?? "[]"));
  let last = Math.max(0, ...waiting.keys());
  const keep = () => {
    sessionStorage.setItem(name, JSON.stringify([...waiting]));
    told(waiting.size);
  };
  const send = async (number) => {
    const [what, given] = waiting.get(number);
    try {
      return await ask(what, given);
    } finally {
      waiting.delete(number);
      keep();
    }
  };
  const left = [...waiting.keys()];
  return {
    busy: (id) => [...waiting.values()].some(([, given]) => given.ids?.includes(id)),
    resume: () => Promise.allSettled(left.splice(0).map(send)),
    add(what, given) {
      waiting.set(++last, [what, given]);
      keep();
      return send(last);
    },
  };
}

/** What a picture shows, as a chip in the color of its label. */
function chipOf(state, row) {
  const label = state.labels.find((one) => one.name === row.label);
  const chip = el("span", { class: "chip" }, row.label ?? "–");
  chip.style.setProperty("--label", label?.color ?? "transparent");
  return chip;
}

function render({ model, el: place }) {
  const ask = asker(model), t = teller(model), number = figures(model), media = model.get("media");
  const state = {
    labels: [], figures: { per_label: {} }, reasons: {}, may: {}, rows: [], count: null,
    wanted: {}, size: 100, cursor: 0, anchor: 0, chosen: new Set(), every: false, single: false, zoom: 0, advance: true, query: "", pictures: new Map(), unsaved: 0,
  };
  let box = null;

  // --- the frame -------------------------------------------------------------------------------------------------------
  const root = el("div", { class: "cm label", tabindex: "0", "data-lm-suppress-shortcuts": "true", "aria-label": t("Label pictures") });
  const tiles = el("dl", { class: "tiles" }), progress = el("progress", { max: 1, value: 0, "aria-label": t("Labeled") });
  const filters = el("form", { class: "row filters" }), message = el("p", { class: "error", role: "alert", hidden: true });
  const grid = el("div", { class: "grid", role: "listbox", "aria-multiselectable": "true", "aria-label": t("Pictures") });
  const single = el("div", { class: "single", hidden: true }), pager = el("div", { class: "row pager" });
  const palette = el("div", { class: "palette" }), status = el("p", { class: "soft status", role: "status" }), detail = el("div", { class: "detail", hidden: true });
  const bar = el("div", { class: "row tools" });
  root.append(el("div", { class: "row top" }, tiles, el("div", { class: "share" }, progress, status)), filters, message,
    el("div", { class: "desk" }, el("div", { class: "stack sheet-side" }, bar, grid, single, pager), el("aside", { class: "stack" }, palette, detail)));
  place.append(root);

  const say = (error) => {
    message.textContent = error?.message ?? String(error ?? "");
    message.hidden = !message.textContent;
  };
  const tried = (work) => async (...given) => {
    say("");
    try {
      return await work(...given);
    } catch (error) {
      say(error);
    }
  };
  const here = () => state.rows[state.cursor];
  const targets = () => (state.chosen.size ? [...state.chosen] : here() ? [here().id] : []);

  // --- figures ---------------------------------------------------------------------------------------------------------
  function showFigures() {
    const { pictures = 0, labeled = 0, unlabeled = 0, splits = {} } = state.figures;
    const tile = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, number.format(value ?? 0)));
    fill(tiles, tile(t("Pictures"), pictures), tile(t("Labeled"), labeled), tile(t("unlabeled"), unlabeled),
      Object.entries(splitNames(t)).map(([name, said]) => tile(said, splits[name])));
    progress.value = pictures ? labeled / pictures : 0;
    const share = t("{share} % labeled", { share: pictures ? Math.floor((100 * labeled) / pictures) : 0 });
    status.textContent = state.unsaved ? t("{count} not saved yet", { count: state.unsaved }) : share;
    status.dataset.unsaved = state.unsaved;
    showPalette();
  }

  // --- palette ---------------------------------------------------------------------------------------------------------
  const search = el("input", { type: "search", class: "find", placeholder: t("Find or add a label ( / )"), "aria-label": t("Find or add a label ( / )"), autocomplete: "off" });
  const list = el("ul", { class: "labels" }), adding = el("button", { type: "button", hidden: true });
  palette.append(el("h2", {}, t("Labels")), search, list, adding);
  const found = () => state.labels.filter((label) => label.name.toLowerCase().includes(state.query.toLowerCase()));

  function showPalette() {
    const current = here()?.label;
    fill(list, ...found().map((label) => {
      const key = state.labels.indexOf(label) + 1;
      const button = el("button", { type: "button", class: "choice", "aria-pressed": String(label.name === current), title: t("Label with “{name}”", { name: label.name }), disabled: !state.may.work, onclick: () => give(label) },
        el("kbd", {}, key <= MOST_KEYS ? String(key) : "·"), el("span", { class: "name" }, label.name), el("span", { class: "soft" }, number.format(state.figures.per_label?.[label.name] ?? 0)));
      button.style.setProperty("--label", label.color);
      return el("li", {}, button);
    }));
    if (!state.query) list.append(el("li", {}, el("button", { type: "button", class: "choice", disabled: !state.may.work, onclick: () => give(NO_LABEL) }, el("kbd", {}, "0"), el("span", { class: "name soft" }, t("no label")))));
    const isNew = state.query.trim() && !state.labels.some((label) => label.name === state.query.trim());
    adding.hidden = !isNew || !state.may.work;
    adding.textContent = t("Add label “{name}”", { name: state.query.trim() });
  }

  search.addEventListener("input", () => {
    state.query = search.value;
    showPalette();
  });
  search.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    event.stopPropagation();
    if (event.key === "Escape" || event.key === "Enter") {
      const first = found()[0];
      if (event.key === "Enter" && state.query && first) give(first);
      else if (event.key === "Enter" && state.query) addLabel();
      search.value = state.query = "";
      showPalette();
      root.focus();
    }
  });
  const addLabel = tried(async () => {
    state.labels = await ask("add_label", { name: state.query.trim() });
    search.value = state.query = "";
    showPalette();
    showFilters();
    root.focus();
  });
  adding.addEventListener("click", addLabel);

  // --- pictures --------------------------------------------------------------------------------------------------------
  async function pictureAddress(id) {
    if (media) return `${media}image/${id}`;
    if (!state.pictures.has(id)) {
      const found = await ask("whole", { number: id });
      state.pictures.set(id, found.buffers ? URL.createObjectURL(new Blob([found.buffers[0]])) : "");
    }
    return state.pictures.get(id);
  }

  function cellOf(row, index) {
    const image = el("img", { alt: row.name, title: row.name, loading: "lazy", draggable: "false", src: row.thumb ?? `${media}thumb/${row.id}` });
    const marks = [row.golden && "★", row.unsure && "?"].filter(Boolean).join(" ");
    const cell = el("div", { class: "cell", role: "option", id: `cm-${row.id}`, "data-id": row.id, "data-label": row.label ?? "", "data-index": index, "aria-selected": "false" },
      image, el("span", { class: "line" }, chipOf(state, row), el("span", { class: "soft" }, marks, row.split ? splitNames(t)[row.split] : "")));
    cell.classList.toggle("gone", Boolean(row.deleted));
    return cell;
  }

  function showCell(row) {
    const old = grid.querySelector(`[data-id="${row.id}"]`);
    if (old) old.replaceWith(cellOf(row, Number(old.dataset.index)));
    mark();
  }

  function mark() {
    const current = here();
    for (const cell of grid.children) {
      const id = Number(cell.dataset.id);
      cell.classList.toggle("here", current?.id === id);
      cell.classList.toggle("pending", Boolean(box?.busy(id)));
      cell.setAttribute("aria-selected", String(state.every || state.chosen.has(id)));
    }
    if (current) root.setAttribute("aria-activedescendant", `cm-${current.id}`);
    showTools();
    showPalette();
  }

  function showGrid() {
    grid.hidden = state.single;
    single.hidden = !state.single;
    if (!state.rows.length) {
      const filtered = Object.values(state.wanted).some(Boolean);
      fill(grid, el("p", { class: "empty" }, filtered ? t("No picture fits this filter.") : t("This theme has no pictures yet: add some above, or with cmlops data import.")));
    } else fill(grid, ...state.rows.map(cellOf));
    mark();
    showSingle();
    showPager();
  }

  async function showSingle() {
    const row = here();
    if (!state.single || !row) return;
    const image = el("img", { alt: row.name, class: "large", draggable: "false", onload: (event) => (event.target.dataset.shown = row.id) });
    image.style.setProperty("--zoom", ZOOMS[state.zoom]);
    const stage = el("div", { class: "stage" }, image);
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1 : -1);
    });
    fill(single, stage, el("p", { class: "row" }, chipOf(state, row), el("strong", {}, row.name), el("span", { class: "soft" }, `${row.width} × ${row.height}`), row.split ? el("span", { class: "badge" }, splitNames(t)[row.split]) : null));
    image.src = await pictureAddress(row.id);
  }

  function zoom(step) {
    state.zoom = Math.max(0, Math.min(ZOOMS.length - 1, state.zoom + step));
    single.querySelector(".large")?.style.setProperty("--zoom", ZOOMS[state.zoom]);
  }

  const columns = () => {
    const first = grid.children[0]?.offsetTop;
    return Math.max(1, [...grid.children].findIndex((cell) => cell.offsetTop !== first)) || grid.children.length || 1;
  };

  let asked = 0;
  const fetchPage = tried(async (turn = {}, cursor = 0) => {
    const mine = ++asked;
    const found = await ask("page", { wanted: clean(state.wanted), turn: { ...turn, limit: state.size } });
    if (mine !== asked) return false; // Somebody has gone on to another page
    if (!found.rows.length && (turn.after || turn.before)) return false;
    for (const row of state.rows) if (row.thumb) URL.revokeObjectURL(row.thumb);
    state.rows = found.rows.map((row, index) => (found.buffers ? { ...row, thumb: URL.createObjectURL(new Blob([found.buffers[index]])) } : row));
    Object.assign(state, { count: found.count, chosen: new Set(), every: false, cursor: cursor < 0 ? Math.max(0, state.rows.length - 1) : cursor });
    state.anchor = state.cursor;
    showGrid();
    showDetail();
    root.dataset.ready = String(Number(root.dataset.ready ?? 0) + 1);
    return true;
  });

  const clean = (wanted) => Object.fromEntries(Object.entries(wanted).filter(([, value]) => value));
  const nextPage = (cursor = 0) => state.rows.length && fetchPage({ after: state.rows.at(-1).id }, cursor);
  const earlierPage = (cursor = 0) => state.rows.length && fetchPage({ before: state.rows[0].id }, cursor);

  function showPager() {
    const size = el("select", { "aria-label": t("Pictures on a page"), onchange: (event) => { state.size = Number(event.target.value); fetchPage(); root.focus(); } },
      PAGE_SIZES.map((one) => el("option", { value: one, selected: one === state.size }, String(one))));
    const go = (text, title, act) => el("button", { type: "button", title, onclick: () => { act(); root.focus(); } }, text);
    fill(pager, go("«", t("First page"), () => fetchPage()), go("‹", t("Page before (Page up)"), () => earlierPage()), go("›", t("Next page (Page down)"), () => nextPage()), go("»", t("Last page"), () => fetchPage({ last: true })),
      el("span", { class: "soft" }, state.count === null ? "" : t("{count} pictures", { count: number.format(state.count) })), el("label", { class: "row push soft" }, t("Pictures on a page"), size));
  }

  // --- tools -----------------------------------------------------------------------------------------------------------
  function showTools() {
    const tool = (text, key, act, allowed = state.may.work, pressed) => el("button", { type: "button", title: key, disabled: !allowed, "aria-pressed": pressed === undefined ? undefined : String(pressed), onclick: () => { act(); root.focus(); } }, text);
    const count = state.every ? state.count : state.chosen.size;
    fill(bar, 
      tool(state.single ? t("Grid") : t("Single picture"), "Enter", toggleSingle, true), tool(t("Details"), "I", toggleDetail, true, !detail.hidden),
      tool(t("Undo"), "Ctrl+Z", () => turnBack("undo")), tool(t("Redo"), "Ctrl+Y", () => turnBack("redo")), tool(t("Skip"), "S", skip, true), tool(t("Unsure"), "U", unsure),
      tool(t("Delete"), "Delete", remove, state.may.manage), tool(t("Go on by itself"), "A", () => { state.advance = !state.advance; showTools(); }, true, state.advance),
      el("span", { class: "push soft chosen" }, count ? t("{count} chosen", { count: number.format(count) }) : ""),
      state.chosen.size && !state.every && state.count > state.rows.length && state.chosen.size === state.rows.length && !state.wanted.labeled
        ? tool(t("Choose all {count}", { count: number.format(state.count) }), "", () => { state.every = true; mark(); }) : null,
      count ? tool(t("Choose none"), "Esc", () => choose([]), true) : null);
  }

  function choose(ids) {
    state.chosen = new Set(ids);
    state.every = false;
    mark();
  }

  function move(index, extend) {
    if (index < 0) return earlierPage(-1);
    if (index >= state.rows.length) return nextPage();
    state.cursor = index;
    if (extend) {
      const [from, to] = [Math.min(state.anchor, index), Math.max(state.anchor, index)];
      choose(state.rows.slice(from, to + 1).map((row) => row.id));
    } else {
      state.anchor = index;
      mark();
    }
    grid.children[index]?.scrollIntoView({ block: "nearest" });
    showSingle();
    showDetail();
  }

  const toggleSingle = () => {
    state.single = !state.single;
    state.zoom = 0;
    grid.hidden = state.single;
    single.hidden = !state.single;
    mark();
    showSingle();
  };
  const toggleDetail = () => {
    detail.hidden = !detail.hidden;
    showTools();
    showDetail();
  };
  const skip = () => move(state.cursor + 1, false);

  // --- labels ----------------------------------------------------------------------------------------------------------
  const give = tried(async (label) => {
    if (!state.may.work || (!here() && !state.every)) return;
    if (state.every) return giveEvery(label);
    const ids = targets(), many = state.chosen.size > 0, before = new Map();
    for (const row of state.rows)
      if (ids.includes(row.id)) {
        before.set(row, row.label);
        row.label = label?.name ?? null;
        row.unsure = false;
      }
    const saved = box.add("label", { ids, label_id: label?.id ?? null });
    [...before.keys()].forEach(showCell);
    if (!many && state.advance) move(state.cursor + 1, false);
    else showSingle();
    try {
      await saved;
      root.dataset.saved = String(Number(root.dataset.saved ?? 0) + 1);
    } catch (error) {
      for (const [row, old] of before) row.label = old;
      throw error;
    } finally {
      [...before.keys()].forEach(showCell);
    }
  });

  const giveEvery = async (label) => {
    const values = { count: number.format(state.count), name: label?.name ?? t("no label") };
    if (!confirm(t("Give all {count} pictures of this filter “{name}”?", values))) return;
    await ask("label_all", { wanted: clean(state.wanted), label_id: label?.id ?? null });
    await fetchPage();
  };

  const unsure = tried(async () => {
    const ids = targets(), rows = state.rows.filter((row) => ids.includes(row.id)), mark = !rows.every((row) => row.unsure);
    rows.forEach((row) => ((row.unsure = mark), showCell(row)));
    if (!state.chosen.size && state.advance) move(state.cursor + 1, false);
    state.reasons = await box.add("unsure", { ids, unsure: mark });
    showFilters();
  });

  const remove = tried(async () => {
    const ids = targets();
    if (!state.may.manage || !ids.length) return;
    if (!confirm(t("Delete {count} pictures? Undo brings them back.", { count: number.format(ids.length) }))) return;
    await box.add("delete", { ids });
    state.rows = state.rows.filter((row) => !ids.includes(row.id));
    state.cursor = Math.min(state.cursor, Math.max(0, state.rows.length - 1));
    choose([]);
    showGrid();
  });

  const turnBack = tried(async (what) => {
    const done = await ask(what);
    if (done.kind === "delete") await fetchPage();
    const told = { count: number.format(done.restored) };
    status.textContent = what === "undo" ? t("Undone: {count} pictures", told) : t("Done again: {count} pictures", told);
    root.dataset.turned = String(Number(root.dataset.turned ?? 0) + 1);
  });

  // --- one picture -----------------------------------------------------------------------------------------------------
  const showDetail = tried(async () => {
    const row = here();
    if (detail.hidden || !row) return;
    const found = await ask("detail", { number: row.id });
    if (here()?.id !== found.id) return;
    const part = (title, ...inside) => (inside.flat().length ? el("section", {}, el("h3", {}, title), ...inside) : null);
    const fact = (name, value) => (value || value === 0 ? el("div", { class: "fact" }, el("span", { class: "soft" }, name), el("span", {}, String(value))) : null);
    const when = (text) => new Date(text).toLocaleString(model.get("language"));
    fill(detail, el("h2", {}, found.name),
      fact(t("Size"), `${found.width} × ${found.height}, ${number.format(found.bytes)} B`), fact(t("Split"), found.split && splitNames(t)[found.split]), fact(t("Group"), found.group), fact(t("Locked for tests"), found.golden && "★"),
      fact(t("Near-duplicates"), found.copies && `#${found.copies}`), fact(t("To look at"), found.reasons.join(", ")), fact(t("Added"), when(found.added)), fact("SHA-256", found.sha256.slice(0, 16) + "…"),
      part(t("What models say"), found.answers.map((one) => el("p", {}, `${one.answer} · ${(100 * one.confidence).toFixed(1)} % · ${one.split === "asked" ? t("when it was sent here") : splitNames(t)[one.split]} · ${one.run.slice(0, 8)}`))),
      part(t("Used by models"), found.models.map((one) => el("p", {}, `${one.mlflow_run_id.slice(0, 8)} · ${one.label} · ${splitNames(t)[one.split]}`))),
      part(t("History"), found.history.map((one) => el("p", {}, `${one.from ?? "–"} → ${one.to ?? "–"} `, el("span", { class: "soft" }, `${one.actor}, ${when(one.created_at)}`)))),
      part(t("From the camera"), Object.entries(found.exif).map(([name, value]) => fact(name, value))));
    detail.dataset.id = found.id;
  });

  // --- filters ---------------------------------------------------------------------------------------------------------
  function showFilters() {
    const w = state.wanted;
    const choice = (name, text, options) => el("select", { name, "aria-label": text, title: text }, el("option", { value: "" }, text), options.map(([value, shown]) => el("option", { value, selected: String(w[name] ?? "") === value }, shown)));
    const kind = w.unlabeled ? "unlabeled" : w.labeled ? "labeled" : "";
    fill(filters, 
      choice("kind", t("All pictures"), [["unlabeled", t("unlabeled")], ["labeled", t("labeled")]].map((one) => one)), choice("label", t("Any label"), state.labels.map((label) => [label.name, label.name])),
      choice("split", t("Any split"), ["train", "valid", "test", "unsplit"].map((name) => [name, splitNames(t)[name]])), choice("reason", t("Any reason"), Object.entries(state.reasons).map(([name, count]) => [name, `${name} (${number.format(count)})`])),
      el("input", { name: "group", placeholder: t("Group"), "aria-label": t("Group"), value: w.group ?? "", size: 9 }), el("input", { name: "labeled_by", placeholder: t("Labeled by"), "aria-label": t("Labeled by"), value: w.labeled_by ?? "", size: 9 }),
      el("input", { name: "text", type: "search", placeholder: t("Name"), "aria-label": t("Name"), value: w.text ?? "" }), el("button", {}, t("Filter")), el("button", { type: "reset", title: t("Clear"), "aria-label": t("Clear") }, "✕"));
    filters.elements.kind.value = kind;
  }

  const applyFilters = () => {
    const given = Object.fromEntries(new FormData(filters));
    const { kind, ...rest } = given;
    state.wanted = { ...rest, unlabeled: kind === "unlabeled", labeled: kind === "labeled" };
    if (kind === "unlabeled") state.wanted.label = "";
    fetchPage();
  };
  filters.addEventListener("submit", (event) => {
    event.preventDefault();
    applyFilters();
    root.focus();
  });
  filters.addEventListener("change", (event) => event.target.tagName === "SELECT" && applyFilters());
  filters.addEventListener("reset", () => {
    state.wanted = {};
    showFilters();
    fetchPage();
  });

  // --- keys and mouse --------------------------------------------------------------------------------------------------
  const step = { ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -columns(), ArrowDown: () => columns() };
  const plain = {
    Enter: toggleSingle, Home: (event) => move(0, event.shiftKey), End: (event) => move(state.rows.length - 1, event.shiftKey), PageDown: () => nextPage(), PageUp: () => earlierPage(),
    KeyS: skip, Space: skip, KeyU: unsure, KeyI: toggleDetail, KeyA: () => { state.advance = !state.advance; showTools(); }, Delete: remove, Slash: () => search.focus(),
    KeyX: () => { const id = here()?.id; choose(state.chosen.has(id) ? [...state.chosen].filter((one) => one !== id) : [...state.chosen, id]); },
    Escape: () => (state.chosen.size || state.every ? choose([]) : state.single && toggleSingle()),
    Equal: () => zoom(1), Minus: () => zoom(-1), NumpadAdd: () => zoom(1), NumpadSubtract: () => zoom(-1),
  };
  const held = { KeyZ: (event) => turnBack(event.shiftKey ? "redo" : "undo"), KeyY: () => turnBack("redo"), KeyA: () => choose(state.rows.map((row) => row.id)) };

  root.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.isComposing || event.altKey) return;
    if (event.target.closest("button") && ["Enter", "Space"].includes(event.code)) return;
    const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code); // Not event.key: a Japanese keyboard may give full-width digits
    const ctrl = event.ctrlKey || event.metaKey;
    let act = ctrl ? held[event.code] : plain[event.code];
    if (!ctrl && step[event.code]) act = () => move(state.cursor + (state.single ? Math.sign(step[event.code]()) : step[event.code]()), event.shiftKey);
    if (!ctrl && digit) act = () => { const label = digit[1] === "0" ? NO_LABEL : state.labels[Number(digit[1]) - 1]; if (label !== undefined) give(label); };
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act(event);
  });
  grid.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    const index = Number(cell.dataset.index), id = Number(cell.dataset.id);
    if (event.shiftKey) move(index, true);
    else if (event.ctrlKey || event.metaKey) {
      state.cursor = state.anchor = index;
      choose(state.chosen.has(id) ? [...state.chosen].filter((one) => one !== id) : [...state.chosen, id]);
    } else {
      if (state.chosen.size || state.every) choose([]);
      move(index, false);
    }
    root.focus({ preventScroll: true });
  });
  grid.addEventListener("dblclick", (event) => event.target.closest(".cell") && toggleSingle());

  // --- news ------------------------------------------------------------------------------------------------------------
  model.on("msg:custom", (content) => {
    if (!content.figures) return;
    state.figures = content.figures;
    for (const change of content.changed) {
      const row = state.rows.find((one) => one.id === change.id);
      if (!row || box?.busy(row.id)) continue;
      Object.assign(row, change);
      showCell(row);
    }
    showFigures();
    if (root.dataset.ready && !state.rows.length && state.figures.pictures && !Object.values(state.wanted).some(Boolean)) fetchPage();
  });
  model.on("connected", () => refresh());
  const refresh = tried(async () => {
    const found = await ask("start");
    Object.assign(state, { labels: found.labels, figures: found.figures, reasons: found.reasons, may: found.may });
    showFigures();
    return found;
  });

  (async () => {
    const found = await refresh();
    if (!found) return;
    box = outbox(ask, `cm-labels-${found.theme}-${found.actor}`, (unsaved) => { state.unsaved = unsaved; showFigures(); });
    await box.resume();
    showFilters();
    await fetchPage();
    root.focus({ preventScroll: true });
  })();
}

export default { render };
