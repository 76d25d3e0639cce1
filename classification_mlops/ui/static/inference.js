const PIECE = 3 * 2 ** 20, LARGEST = 32 * 2 ** 20, AT_ONCE = 16, SHOWN_AT_ONCE = 120, MOST_HELD = 10000; // Bytes, bytes, pictures, cards, pictures
const PICTURES = /\.(jpe?g|jfif|png|gif|webp|bmp|tiff?|avif|jp2|hei[cf]|pgm|ppm|pnm)$/i;

/** All files below what was dropped; folders are walked, and what is no picture in them is passed over. */
async function filesOf(transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = [];
  async function walk(entry, below) {
    if (entry instanceof File) return void found.push([entry, entry.name]);
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      if (!below || (PICTURES.test(file.name) && !file.name.startsWith("."))) found.push([file, below + file.name]);
      return;
    }
    const reader = entry.createReader();
    for (let some; (some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length; ) for (const one of some) await walk(one, `${below}${entry.name}/`);
  }
  for (const entry of entries) if (entry) await walk(entry, "");
  return found;
}

/** Sends files with a question; one that is too large for a message goes ahead in pieces. */
async function withFiles(ask, name, given, files) {
  let [contents, last] = [files, null];
  if (files.length === 1 && files[0].size > PIECE) {
    await ask("forget");
    for (let at = 0; at < files[0].size; at += PIECE) {
      last = files[0].slice(at, at + PIECE);
      if (at + PIECE < files[0].size) await ask("piece", {}, [new Uint8Array(await last.arrayBuffer())]);
    }
    contents = [last];
  }
  return ask(name, given, await Promise.all(contents.map(async (file) => new Uint8Array(await file.arrayBuffer()))));
}

/** The next files that fit one message. */
function nextFew(items) {
  const few = [];
  let size = 0;
  for (const item of items) {
    if (few.length && (few.length >= AT_ONCE || size + item.file.size > PIECE)) break;
    few.push(item);
    size += item.file.size;
  }
  return few;
}

function render({ model, el: place }) {
  const ask = asker(model), t = teller(model), language = model.get("language"), onPage = Boolean(model.get("media"));
  const share = new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 }), count = figures(model);
  place.classList.add("cm", "inference");
  place.tabIndex = 0;
  place.setAttribute("data-lm-suppress-shortcuts", "true");
  const items = [];
  let facts = null, wanted = "", running = false, halted = false, alive = true, most = SHOWN_AT_ONCE, last = 0, wishing = false;
  const view = { filter: "", label: "", sort: "added" };

  // ---- What is said at the top
  const notice = el("div", { role: "status", "aria-live": "polite", class: "notice" });
  const tell = (text, kind = "error") => notice.replaceChildren(el("p", { class: kind }, text, " ", el("button", { type: "button", class: "plain", "aria-label": t("Close"), onclick: () => notice.replaceChildren() }, "✕")));
  const tried = (work) => async (...given) => {
    try {
      return await work(...given);
    } catch (error) {
      tell(error.message ?? String(error));
    }
  };

  // ---- Model and server
  const models = el("select", { "aria-label": t("Model"), "data-models": "", onchange: () => { wanted = models.value; halted = false; notice.replaceChildren(); showServer(); work(); } });
  const server = el("div", { class: "server row" }), advice = el("div", { class: "advice stack" });
  const aliasName = (alias) => (alias === "champion" ? t("champion") : alias === "challenger" ? t("challenger") : alias);
  const chosen = () => facts?.models.find((one) => one.aliases.includes(wanted) || String(one.version) === wanted);
  const begun = () => facts?.starting.find((one) => one.version === chosen()?.version);
  const isStarting = () => wishing || begun()?.failed === "";
  const serving = () => facts?.servers.filter((one) => one.version !== null && one.version === chosen()?.version) ?? [];

  function showModels() {
    const options = [...facts.models.flatMap((one) => one.aliases.map((alias) => [alias, `${aliasName(alias)} · ${t("version {version}", { version: one.version })}`])),
      ...facts.models.map((one) => [String(one.version), t("version {version}", { version: one.version })])];
    options.sort((a, b) => (b[0] === "champion") - (a[0] === "champion"));
    if (!options.some(([value]) => value === wanted)) wanted = options[0]?.[0] ?? "";
    const now = JSON.stringify([options, wanted]);
    if (models.dataset.shown === now) return;
    models.dataset.shown = now;
    fill(models, options.map(([value, name]) => el("option", { value }, name)));
    models.value = wanted;
    models.hidden = !options.length;
  }

  function showServer() {
    const here = serving()[0], version = chosen()?.version, starting = isStarting(), failed = begun()?.failed, others = facts.servers.filter((one) => one.version !== null && one.version !== version);
    place.dataset.server = here ? "ready" : starting ? "starting" : "none";
    const now = JSON.stringify([facts.models, facts.servers, facts.starting, facts.trouble, wanted, starting, facts.may]);
    if (server.dataset.shown === now) return;
    server.dataset.shown = now;
    const stop = here?.name && facts.may.manage && el("button", { type: "button", class: "danger", "data-stop": "", title: t("End this model server; others cannot ask it any more, either"), onclick: tried(async () => { await ask("stop", { name: here.name }); await look(); }) }, t("Stop the server"));
    const start = !here && version && facts.may.manage && el("button", { type: "button", class: "main", "data-start": "", disabled: starting, onclick: tried(async () => { wishing = true; showServer(); try { await ask("start", { wanted }); } finally { wishing = false; await look(); } }) }, starting ? t("Starting…") : t("Start the server"));
    fill(server, here ? el("span", { class: "badge good", title: here.url }, t("Version {version} answers", { version })) : version ? el("span", { class: "badge bad" }, starting ? t("Starting…") : t("No server answers")) : null, start, stop);
    const lines = [];
    if (facts.trouble) lines.push(el("p", { class: "error", "data-trouble": "" }, facts.trouble));
    if (!version) lines.push(el("p", { class: "empty" }, t("This theme has no model yet: label pictures, train, and come back."), " ", onPage && el("a", { href: `/theme/${facts.theme_id}/training/run/` }, t("Train"))));
    else if (!here && starting) lines.push(el("p", { class: "soft" }, t("The model is being loaded; this takes some seconds. Pictures may be dropped already.")));
    else if (!here) {
      if (failed) lines.push(el("p", { class: "error", role: "alert", "data-failed": "" }, t("The server did not start: {reason}", { reason: failed })));
      if (others.length) lines.push(el("p", {}, t("A server of version {other} runs, but you chose version {version}.", { other: others[0].version, version }), " ", el("button", { type: "button", "data-other": "", onclick: () => { wanted = facts.models.find((one) => one.version === others[0].version)?.aliases[0] ?? String(others[0].version); models.dataset.shown = ""; showModels(); halted = false; showServer(); work(); } }, t("Ask version {version}", { version: others[0].version }))));
      lines.push(el("p", {}, facts.may.manage ? t("No model server of this version runs. Start it here, or on the command line:") : t("No model server of this version runs. Ask an administrator to start it, or start it on the command line:"), " ", el("code", { "data-advice": "" }, `cmlops serve ${/^[\w.-]+$/.test(facts.theme) ? facts.theme : `'${facts.theme.replaceAll("'", "'\\''")}'`} --alias ${wanted} --port 0`)));
    }
    fill(advice, lines);
    advice.hidden = !lines.length;
  }

  async function look() {
    facts = await ask("state");
    showModels();
    showServer();
    showTools();
    if (serving().length && halted) halted = false;
    work();
  }

  // ---- Pictures come in
  function add(found) {
    const room = MOST_HELD - items.length;
    if (found.length > room) tell(t("{count} pictures at most are held here: clear some, or use the command line for more.", { count: count.format(MOST_HELD) }));
    for (const [file, name] of found.slice(0, room)) {
      const item = { key: ++last, file, name, answer: null, chosen: false, heat: null };
      if (file.size > LARGEST) item.answer = { file: name, error: "too_many_bytes", message: t("{name} is larger than {size} MB", { name, size: LARGEST / 2 ** 20 }) };
      else if (!file.size) item.answer = { file: name, error: "empty", message: t("{name} is empty", { name }) };
      items.push(item);
    }
    draw();
    work();
  }
  const files = el("input", { type: "file", multiple: true, hidden: true, "data-files": "", onchange: () => { add([...files.files].map((file) => [file, file.name])); files.value = ""; } });
  const folder = el("input", { type: "file", multiple: true, webkitdirectory: true, hidden: true, "data-folder": "", onchange: () => { add([...folder.files].map((file) => [file, file.webkitRelativePath || file.name]).filter(([file]) => PICTURES.test(file.name) && !file.name.startsWith("."))); folder.value = ""; } });
  const zone = el("div", { class: "zone" }, el("div", { class: "big", "aria-hidden": "true" }, "⇩"), el("p", {}, el("strong", {}, t("Drop pictures or folders here"))), el("div", { class: "row" },
    el("button", { type: "button", class: "main", onclick: () => files.click() }, t("Choose pictures")), el("button", { type: "button", onclick: () => folder.click() }, t("Choose a folder"))),
    el("p", { class: "soft small" }, t("Or paste one with Ctrl+V. Nothing is stored unless you send it to labeling.")), files, folder);
  let depth = 0;
  const over = (by) => { depth = Math.max(0, depth + by); zone.classList.toggle("over", depth > 0); };
  const given = { // What comes by drag and drop or from the clipboard
    dragenter: (event) => { event.preventDefault(); over(1); },
    dragleave: () => over(-1),
    dragover: (event) => event.preventDefault(),
    drop: tried(async (event) => { event.preventDefault(); depth = 0; over(0); add(await filesOf(event.dataTransfer)); }),
    paste: (event) => { if (event.clipboardData?.files.length) { event.preventDefault(); add([...event.clipboardData.files].map((file) => [file, file.name])); } },
  };
  const wide = onPage ? document : place; // Nobody has to hit the zone or to click before pasting; in JupyterLab others want these, too
  for (const [name, hear] of Object.entries(given)) wide.addEventListener(name, hear);

  // ---- Questions to the model
  const bar = el("progress", { max: 1, value: 0, "aria-label": t("Progress") }), barText = el("span", { class: "soft small" }), again = el("button", { type: "button", "data-again": "", onclick: () => { halted = false; notice.replaceChildren(); work(); } }, t("Try again"));
  const progress = el("div", { class: "row progressing", hidden: true }, bar, barText, again);
  const waiting = () => items.filter((item) => !item.answer);
  function showProgress() {
    const open = waiting().length;
    progress.hidden = !open;
    bar.max = Math.max(1, items.length);
    bar.value = items.length - open;
    barText.textContent = !serving().length ? t("{count} wait for a model server", { count: count.format(open) }) : t("{done} of {all} answered", { done: count.format(items.length - open), all: count.format(items.length) });
    again.hidden = !halted;
    place.dataset.waiting = open;
    place.dataset.answered = items.length - open;
  }
  async function work() {
    if (running || halted || !alive) return showProgress();
    running = true;
    while (alive && !halted && serving().length) {
      const few = nextFew(waiting()), question = wanted;
      if (!few.length) break;
      showProgress();
      try {
        const { answers } = await withFiles(ask, "answers", { wanted: question, names: few.map((item) => item.name) }, few.map((item) => item.file));
        few.forEach((item, at) => { item.answer = answers[at]; item.question = question; });
        const version = chosen()?.version, other = answers.find((one) => one.model_version && one.model_version !== version);
        if (other && question === wanted) tell(t("The server has changed its model: version {version} answered.", { version: other.model_version }), "done");
      } catch (error) {
        const lost = few.length === 1 && (error.name === "NotReadableError" || error.name === "NotFoundError");
        if (lost) few[0].answer = { file: few[0].name, error: "vanished", message: t("{name} cannot be read any more", { name: few[0].name }) };
        else { halted = true; tell(error.message ?? String(error)); }
      }
      few.forEach((item) => { item.card = null; });
      draw();
    }
    running = false;
    showProgress();
  }

  // ---- Cards
  const colors = (label) => facts?.labels.find((one) => one.name === label)?.color ?? "#8fa1b3";
  const kindOf = (item) => (!item.answer ? "waiting" : item.answer.error ? "error" : item.answer.decision === "accept" ? "accept" : "unsure");
  const said = { accept: t("accepted"), unsure: t("unsure"), reject: t("refused") };
  function picture(item) {
    item.url ??= URL.createObjectURL(item.file);
    const img = el("img", { src: item.heat && item.hot ? `data:image/png;base64,${item.heat}` : item.url, alt: item.name, loading: "lazy", decoding: "async", class: item.hot ? "hot" : "", "data-overlay": item.hot ? "" : null });
    img.addEventListener("error", () => img.replaceWith(el("div", { class: "gone" }, t("Your browser cannot show this format"))));
    return img;
  }
  const showHeat = tried(async (item) => {
    if (item.hot || item.heat) item.hot = !item.hot;
    else {
      item.asking = true;
      redraw(item);
      try {
        const found = await withFiles(ask, "heat", { wanted: item.question ?? wanted, name: item.name }, [item.file]);
        Object.assign(item, { heat: found.overlay, hot: true });
      } finally {
        item.asking = false;
        redraw(item);
      }
    }
    redraw(item);
  });
  function redraw(item) {
    const old = item.card, focused = old?.contains(document.activeElement) && (document.activeElement.dataset.heat !== undefined ? "[data-heat]" : old === document.activeElement ? "" : "input");
    item.card = card(item);
    if (old?.isConnected) old.replaceWith(item.card);
    if (typeof focused === "string") (focused ? item.card.querySelector(focused) : item.card)?.focus();
  }
  function card(item) {
    const answer = item.answer, kind = kindOf(item);
    const check = el("input", { type: "checkbox", checked: item.chosen, "aria-label": t("Choose {name}", { name: item.name }), onchange: () => { item.chosen = check.checked; made.classList.toggle("chosen", item.chosen); showTools(); } });
    const lines = [];
    if (!answer) lines.push(el("p", { class: "soft" }, t("not asked yet")));
    else if (answer.error) lines.push(el("p", { class: "trouble" }, answer.message ?? answer.error));
    else {
      const best = Object.entries(answer.probabilities ?? {}).sort((a, b) => b[1] - a[1]).slice(0, 3), more = answer.labels ?? [];
      lines.push(el("div", { class: "head" }, el("span", { class: "swatch", style: `background:${colors(answer.label)}` }), el("strong", { class: "answer", title: answer.label }, answer.label), el("span", { class: `badge ${kind === "accept" ? "good" : "warn"}` }, said[answer.decision] ?? answer.decision)),
        el("div", { class: "sure", title: t("How sure the model is") }, el("div", { class: "track" }, el("i", { style: `width:${100 * answer.confidence}%`, class: kind })), el("span", {}, share.format(answer.confidence))),
        el("ul", { class: "best" }, best.slice(1).map(([label, value]) => el("li", {}, el("span", { class: "swatch", style: `background:${colors(label)}` }), el("span", { class: "which", title: label }, label), el("span", {}, share.format(value))))),
        more.length !== 1 && el("p", { class: "soft small", title: t("The true label is among these as often as was promised in training") }, more.length ? t("possible: {labels}", { labels: more.join(", ") }) : t("like none of the labels")));
    }
    const foot = answer && !answer.error && el("div", { class: "foot" }, el("span", { class: "soft small" }, t("version {version}", { version: answer.model_version ?? "–" })), el("button", { type: "button", "data-heat": "", "aria-pressed": String(Boolean(item.hot)), disabled: item.asking, title: t("Show which part of the picture spoke for the answer"), onclick: () => showHeat(item) }, item.asking ? t("Asking…") : t("Why?")));
    const made = el("li", { class: `answer-card ${kind} ${item.chosen ? "chosen" : ""}`, tabindex: 0, "data-key": item.key, "data-kind": kind, "data-name": item.name, onkeydown: (event) => onKey(event, item) },
      el("div", { class: "shot", onclick: () => check.click() }, picture(item), el("label", { class: "pick", onclick: (event) => event.stopPropagation() }, check)), el("div", { class: "what" }, lines, el("p", { class: "name soft small", title: item.name }, item.name), foot));
    return made;
  }
  function onKey(event, item) {
    if (event.target !== item.card || event.ctrlKey || event.metaKey || event.altKey) return;
    const cards = [...grid.children].filter((one) => one.classList.contains("answer-card")), at = cards.indexOf(item.card), wide = cards.filter((one) => one.offsetTop === cards[0].offsetTop).length;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + wide, ArrowUp: at - wide, Home: 0, End: cards.length - 1 }[event.key];
    if (to !== undefined) cards[Math.min(Math.max(to, 0), cards.length - 1)]?.focus();
    else if (event.key === " ") item.card.querySelector("input").click();
    else if (event.key === "Enter" && item.answer && !item.answer.error) showHeat(item);
    else if (event.key === "Delete") drop([item]);
    else return;
    event.preventDefault();
  }
  const grid = el("ul", { class: "cards", "aria-label": t("Answers") }), more = el("button", { type: "button", class: "more", hidden: true, onclick: () => { most += SHOWN_AT_ONCE; draw(); } });
  const orders = {
    added: (a, b) => a.key - b.key,
    least: (a, b) => (a.answer?.confidence ?? 2) - (b.answer?.confidence ?? 2) || a.key - b.key,
    most: (a, b) => (b.answer?.confidence ?? -1) - (a.answer?.confidence ?? -1) || a.key - b.key,
    name: (a, b) => a.name.localeCompare(b.name, language, { numeric: true }),
  };
  const fits = (item) => (!view.filter || kindOf(item) === view.filter) && (!view.label || item.answer?.label === view.label);
  const seen = () => items.filter(fits).sort(orders[view.sort]);
  function draw() {
    const found = seen(), cards = found.slice(0, most).map((item) => (item.card ??= card(item)));
    const focused = document.activeElement;
    if (cards.length !== grid.children.length || cards.some((one, at) => grid.children[at] !== one)) fill(grid, cards);
    if (focused && grid.contains(focused)) focused.focus({ preventScroll: true });
    more.hidden = found.length <= most;
    more.textContent = t("Show {count} more", { count: count.format(Math.min(SHOWN_AT_ONCE, Math.max(0, found.length - most))) });
    nothing.hidden = !items.length || found.length > 0;
    tools.hidden = !items.length;
    zone.classList.toggle("small-zone", items.length > 0);
    showTools();
    showProgress();
  }
  function drop(gone) {
    for (const item of gone) {
      items.splice(items.indexOf(item), 1);
      if (item.url) URL.revokeObjectURL(item.url);
    }
    draw();
  }

  // ---- Tools
  const nothing = el("p", { class: "empty", hidden: true }, t("No picture is like that: show all of them again."));
  const tallies = el("div", { class: "row tallies" });
  const filter = el("select", { "aria-label": t("Show"), "data-filter": "", onchange: () => { view.filter = filter.value; most = SHOWN_AT_ONCE; draw(); } }, [["", t("All answers")], ["accept", t("accepted")], ["unsure", t("unsure")], ["error", t("unreadable")]].map(([value, name]) => el("option", { value }, name)));
  const label = el("select", { "aria-label": t("Label"), "data-label": "", onchange: () => { view.label = label.value; most = SHOWN_AT_ONCE; draw(); } });
  const sort = el("select", { "aria-label": t("Order"), "data-sort": "", onchange: () => { view.sort = sort.value; draw(); } }, [["added", t("In the order added")], ["least", t("Least sure first")], ["most", t("Most sure first")], ["name", t("By name")]].map(([value, name]) => el("option", { value }, name)));
  const all = el("button", { type: "button", "data-all": "", onclick: () => { const found = seen(), on = !found.every((item) => item.chosen); found.forEach((item) => { item.chosen = on; item.card = null; }); draw(); } });
  const csv = el("button", { type: "button", "data-csv": "", title: t("One row a picture, with all probabilities; the chosen ones, or all that are shown"), onclick: tried(() => download()) }, t("Download CSV"));
  const send = el("button", { type: "button", class: "main", "data-send": "", onclick: tried(() => sendChosen()) });
  const clear = el("button", { type: "button", "data-clear": "", onclick: () => { const picked = items.filter((item) => item.chosen); drop(picked.length ? picked : [...items]); } });
  const tools = el("div", { class: "tools card stack", hidden: true }, el("div", { class: "row" }, tallies, el("span", { class: "push" }), csv, send), el("div", { class: "row" }, filter, label, sort, all, clear));
  function showTools() {
    if (!facts) return;
    const kinds = Object.groupBy ? Object.groupBy(items, kindOf) : items.reduce((all, item) => ((all[kindOf(item)] ??= []).push(item), all), {});
    const tally = (name, text, kind) => kinds[name]?.length > 0 && el("span", { class: `badge ${kind}`, "data-tally": name }, `${count.format(kinds[name].length)} ${text}`);
    fill(tallies, tally("accept", t("accepted"), "good"), tally("unsure", t("unsure"), "warn"), tally("error", t("unreadable"), "bad"), tally("waiting", t("not asked yet"), ""));
    const names = [...new Set(items.map((item) => item.answer?.label).filter(Boolean))].sort((a, b) => a.localeCompare(b, language, { numeric: true })), now = JSON.stringify(names);
    if (label.dataset.shown !== now) {
      label.dataset.shown = now;
      fill(label, el("option", { value: "" }, t("All labels")), names.map((name) => el("option", { value: name }, name)));
      view.label = names.includes(view.label) ? view.label : "";
      label.value = view.label;
    }
    const picked = items.filter((item) => item.chosen), found = seen();
    all.textContent = found.length && found.every((item) => item.chosen) ? t("Choose none") : t("Choose all shown");
    clear.textContent = picked.length ? t("Remove {count}", { count: count.format(picked.length) }) : t("Remove all");
    const able = picked.filter((item) => item.answer && !item.answer.error);
    send.hidden = !facts.may.send;
    send.disabled = !able.length || sending;
    send.textContent = sending ? t("Sending…") : able.length ? t("Send {count} to labeling", { count: count.format(able.length) }) : t("Send to labeling");
    send.title = able.length ? t("Import these pictures without a label; they wait for somebody to look at them") : t("Choose pictures first");
  }
  async function download() {
    const picked = seen().filter((item) => item.chosen && item.answer), rows = (picked.length ? picked : seen().filter((item) => item.answer)).map((item) => ({ ...item.answer, file: item.name }));
    const labels = [...new Set(rows.flatMap((row) => Object.keys(row.probabilities ?? {})))];
    let text = "";
    for (let at = 0; at === 0 || at < rows.length; at += 500) {
      const { head, lines } = await ask("table", { labels, rows: rows.slice(at, at + 500).map(({ file, label, confidence, decision, error, model_version, probabilities }) => ({ file, label, confidence, decision, error, model_version, probabilities })) });
      text += (at ? "" : head) + lines;
    }
    const url = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" })); // The mark tells Excel that this is UTF-8
    const link = el("a", { href: url, download: `${facts.theme}-${new Date().toISOString().slice(0, 10)}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  }
  let sending = false;
  async function sendChosen() {
    let open = items.filter((item) => item.chosen && item.answer && !item.answer.error);
    const sum = { added: 0, already_there: 0, queued: 0 };
    sending = true;
    showTools();
    try {
      while (open.length) {
        const few = nextFew(open);
        const rows = few.map((item) => ({ file: item.name, label: item.answer.label, confidence: item.answer.confidence, decision: item.answer.decision, model_version: item.answer.model_version }));
        const done = await withFiles(ask, "keep", { rows }, few.map((item) => item.file));
        for (const name of Object.keys(sum)) sum[name] += done[name];
        few.forEach((item) => { item.chosen = false; item.card = null; });
        open = open.slice(few.length);
        draw();
      }
    } finally {
      sending = false;
      showTools();
    }
    tell(t("{added} pictures are new in this theme, {there} were there already; {queued} wait for somebody to look at them.", { added: count.format(sum.added), there: count.format(sum.already_there), queued: count.format(sum.queued) }), "done");
    place.dataset.sent = sum.added + sum.already_there;
  }

  // ---- The whole
  place.append(el("div", { class: "card stack" }, el("div", { class: "row" }, el("label", { class: "row" }, el("strong", {}, t("Model")), models), server), advice), notice, zone, progress, tools, nothing, grid, more);
  model.on("connected", tried(look));
  let timer = 0;
  const again_soon = () => { timer = setTimeout(async () => { if (!document.hidden) await look().catch(() => null); if (alive) again_soon(); }, isStarting() ? 700 : 3000); };
  (async () => { await tried(look)(); place.dataset.ready = ""; if (alive) again_soon(); })();
  return () => { alive = false; clearTimeout(timer); for (const [name, hear] of Object.entries(given)) wide.removeEventListener(name, hear); items.forEach((item) => item.url && URL.revokeObjectURL(item.url)); };
}

export default { render };
