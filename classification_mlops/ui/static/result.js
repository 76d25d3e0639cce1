const MATRIX_LABELS = 40;

/** What the numbers of a run are called. */
const metricNames = (t) => ({
  test_accuracy: [t("Accuracy"), t("Right answers among the test pictures, which the model has never seen.")],
  test_macro_f1: [t("Mean F1"), t("Each label counts alike, however rare it is. 100 % is perfect.")],
  test_clean_accuracy: [t("Accuracy without leaks"), t("Without test pictures that have a copy among those the model learnt from.")],
  test_accepted: [t("Accepted answers"), t("Share of answers that are sure enough to need no person.")],
  test_accepted_accuracy: [t("Right among the accepted"), t("The promise is 99 %.")],
  test_coverage: [t("True label among the named"), t("Where the model names several labels, the true one should be among them 95 times of 100.")],
  test_miss_rate: [t("Missed defects"), t("Defects that were taken for good.")],
  test_overkill_rate: [t("Good pictures rejected"), t("Good pictures that were taken for defects.")],
});

const swatch = (color) => el("i", { class: "swatch", style: `background:${/^#[0-9a-f]{6}$/i.test(color) ? color : "#999"}`, "aria-hidden": "true" });

/** Tabs: arrows move between them, the first one that is opened fills itself. */
function tabbed(t, tabs, remember) {
  const list = el("div", { role: "tablist", class: "tabs", "aria-label": t("Parts of the result") });
  const panels = el("div", { class: "panels" });
  const buttons = tabs.map(([key, title]) => el("button", { type: "button", role: "tab", id: `tab-${key}`, "data-tab": key, onclick: () => open(key) }, title));
  const filled = {};
  function open(key) {
    tabs.forEach(([name, , fill], n) => {
      const on = name === key;
      buttons[n].setAttribute("aria-selected", on);
      buttons[n].tabIndex = on ? 0 : -1;
      if (on && !filled[name]) panels.append((filled[name] = el("div", { role: "tabpanel", "aria-labelledby": `tab-${name}`, "data-panel": name, class: "stack" }, fill())));
      if (filled[name]) filled[name].hidden = !on;
    });
    remember(key);
  }
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -99, End: 99 }[event.key], at = buttons.indexOf(event.target);
    if (!step || at < 0) return;
    event.preventDefault();
    const next = Math.abs(step) > 1 ? (step < 0 ? 0 : buttons.length - 1) : (at + step + buttons.length) % buttons.length;
    buttons[next].focus();
    open(tabs[next][0]);
  });
  list.append(...buttons);
  return { element: [list, panels], open };
}

/** The table of labels and answers; cells are buttons that open their pictures. */
function matrix({ t, write, run, choose }) {
  const counts = new Map(run.confusion.map(([label, answer, count]) => [JSON.stringify([label, answer]), count]));
  const known = new Set(run.confusion.flatMap(([label, answer]) => [label, answer]));
  const order = run.classes.length ? run.classes.map((row) => row.label) : [...known].sort();
  const names = [...order, ...[...known].filter((name) => !order.includes(name))];
  const cell = (label, answer) => counts.get(JSON.stringify([label, answer])) ?? 0;
  const open = (label, answer, button) => {
    place.querySelectorAll("[aria-pressed]").forEach((one) => one.setAttribute("aria-pressed", one === button));
    choose(label, answer);
  };
  const button = (label, answer, attributes, ...children) =>
    el("button", { type: "button", "aria-pressed": "false", "data-label": label, "data-answer": answer, onclick: (event) => open(label, answer, event.currentTarget), ...attributes }, ...children);
  const place = el("div", { class: "matrix-place" });
  if (names.length > MATRIX_LABELS) {
    const pairs = run.confusion.filter(([label, answer]) => label !== answer).sort((a, b) => b[2] - a[2]).slice(0, 100);
    place.append(el("p", { class: "soft" }, t("{count} labels are too many for a table: these pairs are confused most.", { count: names.length })),
      el("ol", { class: "pairs" }, pairs.map(([label, answer, count]) => el("li", {}, button(label, answer, {}, `${label} → ${answer}`, el("b", {}, write.count(count)))))));
    return place;
  }
  const sums = new Map(names.map((label) => [label, names.reduce((sum, answer) => sum + cell(label, answer), 0)]));
  const head = el("tr", {}, el("td", { class: "corner" }, el("span", {}, t("label ↓ answer →"))), names.map((name) => el("th", { scope: "col", title: name }, el("span", {}, name))));
  const rows = names.map((label) => el("tr", {}, el("th", { scope: "row", title: label }, label), names.map((answer) => {
    const count = cell(label, answer), share = count / (sums.get(label) || 1);
    if (!count) return el("td", { class: label === answer ? "zero same" : "zero" });
    const [hue, ink] = label === answer ? ["11, 92, 171", "#1d2733"] : ["179, 38, 30", "#1d2733"];
    const strength = label === answer ? 0.08 + 0.8 * share : 0.1 + 0.78 * share;
    const said = t("label {label}, answer {answer}: {count} pictures, {share} of this label", { label, answer, count: write.count(count), share: write.share(share) });
    return el("td", {}, button(label, answer, { title: said, "aria-label": said, style: `background: rgba(${hue}, ${strength.toFixed(3)}); color: ${strength > 0.6 ? "#fff" : ink}` }, write.count(count)));
  })));
  const table = el("table", { class: "matrix" }, el("thead", {}, head), el("tbody", {}, rows));
  table.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (dx === undefined || event.target.tagName !== "BUTTON") return;
    event.preventDefault();
    let x = names.indexOf(event.target.dataset.answer) + dx, y = names.indexOf(event.target.dataset.label) + dy;
    for (; x >= 0 && y >= 0 && x < names.length && y < names.length; x += dx, y += dy) {
      const next = rows[y].children[x + 1].querySelector("button");
      if (next) return next.focus();
    }
  });
  place.append(el("div", { class: "scroll" }, table), el("p", { class: "soft small" }, t("Blue is right, red is wrong; darker is a larger share of the label. Click a cell to see its pictures.")));
  return place;
}

/** Pictures behind a number, and a palette that says what they show. */
function pictureWall({ model, t, write, ask, run, tell }) {
  const chosen = new Set();
  let rows = [], cell = {}, turn = 0;
  const title = el("h2", {}), list = el("ul", { class: "wall" }), note = el("div", { class: "row", role: "status" });
  const more = busyButton({ class: "more", hidden: true }, t("Show more"), () => load(rows.length), tell);
  const bar = el("div", { class: "row palette", hidden: true, role: "toolbar", "aria-label": t("Say what the chosen pictures show") });
  const place = el("section", { class: "card stack pictures" }, el("div", { class: "row" }, title), bar, note, list, more);
  const buttons = run.labels.map((label, n) => el("button", { type: "button", "data-palette": label.id, disabled: true, title: t("Give the chosen pictures this label"), onclick: () => relabel(label) },
    swatch(label.color), label.name, n < 9 && el("kbd", {}, n + 1)));
  const hint = el("span", { class: "soft" });
  bar.append(el("span", { class: "soft" }, t("Wrong label? Choose pictures, then:")), ...buttons, hint);

  function mark() {
    list.querySelectorAll("[data-id]").forEach((one) => one.setAttribute("aria-pressed", chosen.has(+one.dataset.id)));
    buttons.forEach((one) => (one.disabled = !chosen.size));
    hint.textContent = chosen.size ? t("{count} chosen", { count: write.count(chosen.size) }) : "";
  }
  function said(text, undo) {
    note.replaceChildren(el("span", { class: "done" }, text), ...(undo ? [busyButton({ "data-undo": "" }, t("Undo"), async () => {
      const { restored } = await ask("undo");
      said(t("Taken back: {count} pictures", { count: write.count(restored) }));
      await load(0);
    }, tell)] : []));
  }
  async function relabel(label, ids = [...chosen]) {
    if (!ids.length || !run.may.work) return;
    try {
      const { changed } = await ask("relabel", { ids, label_id: label.id });
      for (const row of rows) if (ids.includes(row.id)) Object.assign(row, { label_id: label.id, label: label.name });
      chosen.clear();
      draw();
      said(t("{count} pictures are now {label}. The next training learns from that.", { count: write.count(changed), label: label.name }), changed > 0);
    } catch (error) {
      tell(error.message);
    }
  }
  function card(row) {
    const wrong = row.learnt_as !== row.answer, changed = row.id && row.label !== row.learnt_as;
    const color = run.labels.find((label) => label.id === row.label_id)?.color;
    const caption = [el("span", {}, row.learnt_as, el("span", { class: "soft" }, " → "), el("b", { class: wrong ? "wrong" : "right" }, row.answer)), el("span", { class: "soft small" }, write.share(row.confidence))];
    if (changed) caption.push(el("span", { class: "now" }, swatch(color), row.label ?? t("no label")));
    const picture = row.source ? el("img", { src: row.source, alt: "", loading: "lazy", width: 120, height: 120 }) : el("span", { class: "gone" }, row.id ? t("The file is missing.") : t("This picture was deleted."));
    const name = t("{name}: label {label}, answer {answer}", { name: row.name ?? "", label: row.learnt_as, answer: row.answer });
    return el("li", {}, el("button", { type: "button", class: "picture", "data-id": row.id ?? 0, disabled: !row.id, "aria-pressed": chosen.has(row.id), title: row.golden ? `${name} · ${t("golden picture")}` : name, onclick: () => {
      if (!chosen.delete(row.id)) chosen.add(row.id);
      mark();
    }, onkeydown: (event) => {
      const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
      if (digit && run.labels[digit - 1] && !event.ctrlKey && !event.metaKey && !event.altKey) relabel(run.labels[digit - 1], chosen.size ? [...chosen] : [row.id]);
    } }, picture, el("span", { class: "caption" }, caption)), model.get("media") && row.id ? el("a", { class: "whole", href: `${model.get("media")}image/${row.id}`, target: "_blank", rel: "noopener", title: t("Open the picture itself") }, "⤢") : null);
  }
  function draw() {
    const at = list.querySelector(":focus")?.dataset?.id;
    list.replaceChildren(...rows.map(card));
    if (at) list.querySelector(`[data-id="${CSS.escape(at)}"]`)?.focus();
    bar.hidden = !run.may.work || !rows.some((row) => row.id);
    mark();
  }
  async function load(start) {
    const mine = ++turn;
    place.dataset.ready = "no";
    const { pictures, buffers } = await ask("answers", { ...cell, start });
    if (mine !== turn) return;
    pictures.forEach((row, n) => (row.source = thumbOf(model, row, buffers?.[n])));
    rows = start ? [...rows, ...pictures] : pictures;
    more.hidden = pictures.length < 60;
    if (!rows.length) note.replaceChildren(el("p", { class: "empty" }, t("No picture here: nothing was wrong, or nothing was kept.")));
    draw();
    place.dataset.ready = "yes";
  }
  return {
    element: place,
    open(label, answer) {
      cell = label === undefined ? {} : { label, answer };
      title.textContent = label === undefined ? t("Worst mistakes, the surest first") : label === answer ? t("{label}, recognised", { label }) : t("{label}, taken for {answer}", { label, answer });
      chosen.clear();
      note.replaceChildren();
      return load(0).catch((error) => tell(error.message));
    },
  };
}

/** Accuracy by confidence: on the dashed line, confidence can be believed. */
function reliabilityChart({ t, write, facts }) {
  const W = 372, H = 320, L = 48, B = 40, T = 10, R = 24, same = JSON.stringify(facts.before) === JSON.stringify(facts.after);
  const kinds = [["before", t("before the temperature"), "#b26a00"], ["after", t("as the model answers"), "#0072B2"]].slice(same ? 1 : 0);
  const low = Math.max(0, Math.min(1, ...kinds.flatMap(([kind]) => facts[kind].flatMap(([x, , from]) => [x, from]))) - 0.05);
  const px = (x) => L + ((W - L - R) * (x - low)) / (1 - low || 1), py = (y) => T + (H - T - B) * (1 - (y - low) / (1 - low || 1));
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "plot square", role: "img", "aria-label": t("Accuracy by confidence") });
  for (const tick of ticksOf(low, 1, 5))
    picture.append(svg("line", { x1: L, x2: W - R, y1: py(tick), y2: py(tick), class: "grid" }), svg("text", { x: L - 6, y: py(tick) + 4, "text-anchor": "end" }, write.share(tick).replace(/[.,]0/, "")), svg("text", { x: px(tick), y: H - B + 18, "text-anchor": "middle" }, write.share(tick).replace(/[.,]0/, "")));
  picture.append(svg("line", { x1: px(low), x2: px(1), y1: py(low), y2: py(1), class: "honest" }), svg("text", { x: (L + W - R) / 2, y: H - 4, "text-anchor": "middle" }, t("confidence")));
  for (const [kind, name, color] of kinds) {
    const points = facts[kind];
    picture.append(svg("path", { d: points.map(([x, y], n) => `${n ? "L" : "M"}${px(x)} ${py(y)}`).join(""), fill: "none", stroke: color, "stroke-width": 1.6, "data-kind": kind }));
    for (const [x, y, from, to, count] of points)
      picture.append(svg("line", { x1: px(x), x2: px(x), y1: py(from), y2: py(to), stroke: color, "stroke-width": 3, opacity: 0.25 }),
        svg("circle", { cx: px(x), cy: py(y), r: 4, fill: color }, svg("title", {}, `${name}: ${write.share(x)} → ${write.share(y)} (${write.count(count)})`)));
  }
  const legend = el("div", { class: "legend" }, kinds.map(([, name, color]) => el("span", {}, swatch(color), name)));
  return el("figure", { class: "chart" }, el("figcaption", {}, t("Accuracy by confidence")), picture, legend);
}

/** How sure right and wrong answers are. */
function confidenceBars({ t, write, facts }) {
  const W = 460, H = 320, L = 44, B = 40, T = 10, R = 10, sums = facts.right.map((count, n) => count + facts.wrong[n]);
  const most = Math.max(1, ...sums), wide = (W - L - R) / sums.length, tall = H - T - B;
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "plot", role: "img", "aria-label": t("Pictures by confidence") });
  for (const tick of ticksOf(0, most)) if (Number.isInteger(tick)) picture.append(svg("line", { x1: L, x2: W - R, y1: T + tall * (1 - tick / most), y2: T + tall * (1 - tick / most), class: "grid" }), svg("text", { x: L - 6, y: T + tall * (1 - tick / most) + 4, "text-anchor": "end" }, write.count(tick)));
  sums.forEach((sum, n) => {
    let y = T + tall;
    for (const [name, count, color] of [[t("right"), facts.right[n], "#0072B2"], [t("wrong"), facts.wrong[n], "#D55E00"]]) {
      const height = (tall * count) / most;
      y -= height;
      if (count) picture.append(svg("rect", { x: L + n * wide + 1, width: wide - 2, y, height, fill: color }, svg("title", {}, `${write.share(n / sums.length)} – ${write.share((n + 1) / sums.length)}: ${name} ${write.count(count)}`)));
    }
  });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) picture.append(svg("text", { x: L + (W - L - R) * tick, y: H - B + 18, "text-anchor": tick === 1 ? "end" : "middle" }, write.share(tick).replace(/[.,]0/, "")));
  picture.append(svg("text", { x: (L + W - R) / 2, y: H - 4, "text-anchor": "middle" }, t("confidence")));
  if (facts.accept_confidence <= 1) picture.append(svg("line", { x1: L + (W - L - R) * facts.accept_confidence, x2: L + (W - L - R) * facts.accept_confidence, y1: T, y2: H - B, class: "mark" }, svg("title", {}, t("answers from here on are accepted"))));
  return el("figure", { class: "chart" }, el("figcaption", {}, t("Pictures by confidence")), picture, el("div", { class: "legend" }, el("span", {}, swatch("#0072B2"), t("right")), el("span", {}, swatch("#D55E00"), t("wrong")), el("span", {}, "┊ ", t("accepted from here"))));
}

export default {
  render({ model, el: place }) {
    const ask = asker(model), t = teller(model), write = writer(model), onPage = Boolean(model.get("media"));
    const trouble = el("div", { role: "alert" });
    const tell = (text) => trouble.replaceChildren(el("p", { class: "error" }, text, " ", el("button", { type: "button", class: "plain", "aria-label": t("Close"), onclick: () => trouble.replaceChildren() }, "✕")));
    const facts = (rows) => el("table", { class: "facts" }, el("tbody", {}, rows.filter(([, value]) => value !== undefined && value !== null).map(([name, value, help]) => el("tr", {}, el("th", { scope: "row", title: help }, name), el("td", {}, value)))));
    const late = (name, fill) => {
      const part = el("div", { class: "stack", "data-part": name }, el("p", { class: "soft" }, t("Loading…")));
      ask(name).then((found) => { part.replaceChildren(...[fill(found)].flat()); part.dataset.ready = "yes"; }, (error) => part.replaceChildren(el("p", { class: "error" }, error.message)));
      return part;
    };
    place.classList.add("cm", "result");
    place.tabIndex = 0;
    place.setAttribute("data-lm-suppress-shortcuts", "true");
    const body = el("div", { class: "stack" }, el("p", { class: "soft" }, t("Loading…")));
    place.append(trouble, body);
    let run, base, opened = onPage ? location.hash.slice(1) : "";

    // ---- The head: what it is, and what can be done with it
    function head() {
      const served = run.aliases.includes("champion");
      const about = [statusBadge(t, run.status), run.version && el("span", { class: "badge", "data-version": run.version }, t("version {version}", { version: run.version })), served && el("span", { class: "badge good", "data-champion": "" }, t("champion")), run.aliases.includes("challenger") && el("span", { class: "badge" }, t("challenger"))];
      const times = run.started_at && el("span", { class: "soft" }, t("started {moment}, took {time}", { moment: write.moment(run.started_at), time: spell(t, write.since(run.started_at, run.finished_at)) }));
      const actions = el("div", { class: "row push" });
      if (onPage) actions.append(el("a", { class: "button", href: `/theme/${run.theme_id}/training/history/` }, t("All trainings")));
      if (run.has_model && run.may.work && onPage) actions.append(el("a", { class: "button", href: `${base}model/`, download: "", "data-download": "model", title: t("The registered model with weights, preprocessing and labels, as one ZIP file") }, t("Download model")));
      if (run.has_model && run.may.manage) actions.append(el("button", { type: "button", class: served ? "" : "main", disabled: served, "data-promote": "", title: served ? t("This model is served already") : t("See what speaks for and against it, then let it be served"), onclick: promotion }, served ? t("Is served") : t("Promote…")));
      const id = el("code", { class: "soft small", title: t("The number of the run in MLflow") }, run.run_id);
      return el("div", { class: "card row" }, el("div", { class: "stack tight" }, el("div", { class: "row" }, about, times), id), actions);
    }
    const ended = () => !["queued", "running", "paused"].includes(run.status);
    function states() {
      const shown = [];
      if (!ended()) shown.push(el("p", { class: "card" }, t("This training has not ended yet."), " ", onPage && el("a", { href: `/theme/${run.theme_id}/training/run/` }, t("Watch it"))));
      if (run.trouble) shown.push(el("p", { class: "error", "data-trouble": "" }, run.trouble));
      if (run.error) shown.push(el("p", { class: "error", "data-error": "" }, run.error));
      return shown;
    }
    function tiles() {
      const names = metricNames(t), main = ["test_accuracy", "test_macro_f1"], shown = Object.keys(names).filter((name) => write.known(run.metrics[name]));
      if (!shown.length) return ended() ? el("p", { class: "empty" }, t("This run has left no numbers: it ended before the examination.")) : "";
      return el("dl", { class: "tiles scores" }, shown.map((name) => {
        const [value, low, high] = ["", "_low", "_high"].map((end) => run.metrics[name + end]);
        return el("div", { title: names[name][1], "data-metric": name, class: main.includes(name) ? "large" : "" }, el("dt", {}, names[name][0]), el("dd", {}, write.share(value)), write.known(low) && el("dd", { class: "range" }, intervalBar(write, value, low, high), el("span", {}, write.range(low, high))));
      }));
    }

    // ---- Overview
    function overviewPart() {
      const { rows, best_epoch } = run.learning, pair = (name) => [{ name: t("train"), color: COLORS[0], points: curve(rows, `train_${name}`) }, { name: t("valid"), color: "#b26a00", points: curve(rows, `valid_${name}`) }];
      const charts = el("section", { class: "card stack" }, el("h2", {}, t("Learning")), el("div", { class: "charts" }, lineChart({ t, write, title: t("Loss"), series: pair("loss"), mark: best_epoch }), lineChart({ t, write, title: t("Accuracy"), series: pair("accuracy"), mark: best_epoch, format: write.share })),
        el("p", { class: "soft small" }, t("Both losses should fall together. Where valid turns up while train falls on, the model begins to learn the pictures by heart. The dotted line is the epoch that was kept.")));
      const cells = (row, name) => el("td", { class: "measure" }, el("span", { "data-value": name }, write.share(row[name])), write.known(row[name]) && intervalBar(write, row[name], row[`${name}_low`], row[`${name}_high`]));
      const weakest = [...run.classes].sort((a, b) => (a.f1 ?? 2) - (b.f1 ?? 2));
      const table = el("section", { class: "card stack" }, el("h2", {}, t("Labels, the weakest first")), el("div", { class: "scroll" }, el("table", { class: "classes" }, el("thead", {}, el("tr", {}, [[t("label")], [t("test pictures")], [t("precision"), t("How often this answer is right")], [t("recall"), t("How much of this label is found")], ["F1", t("Falls when precision or recall does")]].map(([name, help]) => el("th", { scope: "col", title: help }, name)))),
        el("tbody", {}, weakest.map((row) => el("tr", { "data-class": row.label }, el("th", { scope: "row" }, row.label), el("td", {}, write.count(row.pictures)), cells(row, "precision"), cells(row, "recall"), cells(row, "f1")))))),
        el("p", { class: "soft small" }, t("The line around a dot says where the true value lies, 19 times of 20: with few pictures it is wide.")));
      return [charts, run.classes.length ? table : null].filter(Boolean);
    }

    // ---- Pictures
    function picturesPart() {
      const wall = pictureWall({ model, t, write, ask, run, tell });
      const look = (label, answer) => wall.open(label, answer).then(() => wall.element.getBoundingClientRect().top > innerHeight - 120 && wall.element.scrollIntoView({ behavior: "smooth", block: "start" }));
      const worst = el("button", { type: "button", "data-worst": "", onclick: () => look() }, t("Worst mistakes"));
      const confusion = el("section", { class: "card stack" }, el("div", { class: "row" }, el("h2", {}, t("What was taken for what")), el("span", { class: "push" }, worst)), run.confusion.length ? matrix({ t, write, run, choose: look }) : el("p", { class: "empty" }, t("No answers were kept.")));
      const labels = Math.max(run.classes.length, run.labels.length), wide = el("div", { class: labels > 8 && labels <= MATRIX_LABELS ? "two dense" : "two" }, confusion, wall.element);
      wall.open();
      return [wide, decidedPart()];
    }
    function decidedPart() {
      const list = late("explanations", ({ pictures, buffers }) => {
        if (!pictures.length) return el("p", { class: "empty" }, t("This run has no such pictures."));
        return el("ul", { class: "heat" }, pictures.map((one, n) => el("li", {}, el("img", { src: URL.createObjectURL(new Blob([buffers[n]], { type: "image/png" })), alt: t("The picture, and the places that spoke for the answer"), loading: "lazy" }),
          one.answer !== undefined && el("span", {}, one.label, el("span", { class: "soft" }, " → "), el("b", { class: one.label === one.answer ? "right" : "wrong" }, one.answer), el("span", { class: "soft small" }, ` ${write.share(one.confidence)}`)))));
      });
      return el("section", { class: "card stack" }, el("h2", {}, t("What decided")), el("p", { class: "soft" }, t("Left, the picture as the network sees it; right, warm places spoke for the answer. An answer that comes from the background is right by accident.")), list);
    }

    // ---- Confidence
    function confidencePart() {
      const { reliability, calibration, metrics } = run;
      const charts = reliability ? el("div", { class: "charts" }, reliabilityChart({ t, write, facts: reliability }), confidenceBars({ t, write, facts: reliability })) : el("p", { class: "empty" }, t("This run has kept no such numbers; its report shows them as a picture."));
      const rows = facts([
        [t("temperature"), calibration && write.figure(calibration.temperature, 2), t("Scores are divided by it; 1 changes nothing")],
        [t("calibration error on test"), write.known(metrics.test_calibration_error) ? write.figure(metrics.test_calibration_error) : null, t("Mean distance between confidence and accuracy; 0 is honest")],
        [t("answers are accepted from confidence"), calibration && (calibration.accept_confidence > 1 ? t("none is sure enough") : write.share(calibration.accept_confidence))],
        [t("accepted answers on test"), write.known(metrics.test_accepted) ? write.share(metrics.test_accepted) : null],
        [t("right among the accepted, promised 99 %"), write.known(metrics.test_accepted_accuracy) ? write.share(metrics.test_accepted_accuracy) : null],
        [t("labels are named from probability"), calibration && write.figure(calibration.conformal_threshold)],
        [t("named labels of a picture"), write.known(metrics.test_named_labels) ? write.figure(metrics.test_named_labels, 2) : null],
        [t("the true one is among them, promised 95 %"), write.known(metrics.test_coverage) ? write.share(metrics.test_coverage) : null],
      ]);
      return [el("section", { class: "card stack" }, el("h2", {}, t("Can its confidence be believed?")), el("p", { class: "soft" }, t("On the dashed line the model is honest; below it, it boasts. These are the pictures of valid, from which the temperature was found.")), charts), el("section", { class: "card stack" }, el("h2", {}, t("Numbers")), rows)];
    }

    // ---- Data
    function dataPart() {
      const splits = [["train", t("train"), "#0072B2"], ["valid", t("valid"), "#E69F00"], ["test", t("test"), "#009E73"]];
      const table = late("data", ({ counts, skipped }) => {
        const names = Object.keys(counts), sum = (row) => splits.reduce((all, [split]) => all + (row[split] ?? 0), 0);
        if (!names.length) return el("p", { class: "empty" }, t("This run has not come so far as to choose its pictures."));
        const most = Math.max(...names.map((name) => sum(counts[name]))), total = Object.fromEntries(splits.map(([split]) => [split, names.reduce((all, name) => all + (counts[name][split] ?? 0), 0)]));
        const row = (name, own, attributes = {}) => el("tr", attributes, el("th", { scope: "row" }, name), splits.map(([split]) => el("td", { "data-split": split }, write.count(own[split] ?? 0))), el("td", {}, el("b", {}, write.count(sum(own)))), el("td", { class: "stacked" }, name !== t("all labels") && el("span", { class: "stackbar" }, splits.map(([split, , color]) => el("i", { style: `width:${(100 * (own[split] ?? 0)) / most}%;background:${color}` })))));
        return [el("div", { class: "scroll" }, el("table", { class: "counts" }, el("thead", {}, el("tr", {}, el("th", {}, t("label")), splits.map(([, name, color]) => el("th", { scope: "col" }, swatch(color), name)), el("th", { scope: "col" }, t("all")), el("th", {}))), el("tbody", {}, names.map((name) => row(name, counts[name], { "data-counts": name }))), el("tfoot", {}, row(t("all labels"), total)))),
          skipped ? el("p", { class: "soft" }, t("{count} pictures could not be read and were left out.", { count: write.count(skipped) })) : ""];
      });
      const kinds = { added: t("new since then"), removed: t("no longer there"), relabeled: t("with another label"), moved: t("in another split") };
      const answer = el("div", { class: "stack", "data-part": "changes" });
      const compare = busyButton({ "data-changes": "" }, t("Compare with the pictures of now"), async () => {
        const found = await ask("changes");
        const rows = found.table.map((row) => el("tr", {}, el("td", {}, row.change.split("+").map((kind) => kinds[kind] ?? kind).join(", ")), el("td", {}, row.from || "–"), el("td", {}, row.to || "–"), el("td", {}, write.count(row.pictures))));
        answer.replaceChildren(found.same ? el("p", { class: "done" }, t("Nothing has changed: a training now would see the same pictures, labels and splits.")) : el("dl", { class: "tiles" }, Object.entries(kinds).map(([kind, name]) => el("div", { "data-change": kind }, el("dt", {}, name), el("dd", {}, write.count(found[kind]))))),
          ...(rows.length ? [el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, [t("what"), t("then"), t("now"), t("pictures")].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)))] : []));
        answer.dataset.ready = "yes";
      }, tell);
      return [el("section", { class: "card stack" }, el("div", { class: "row" }, el("h2", {}, t("The pictures it was made with")), onPage && run.files.snapshot && el("a", { class: "button push", href: `${base}files/snapshot`, download: "", "data-download": "snapshot" }, t("Download the list as CSV"))), table), el("section", { class: "card stack" }, el("div", { class: "row" }, el("h2", {}, t("And now?")), compare), el("p", { class: "soft" }, t("Labels and pictures may have changed since. This compares the list that was frozen for the run with what is in the theme.")), answer)];
    }

    // ---- Settings
    function settingsPart() {
      return late("settings", ({ settings, augmentations, tracking }) => {
        const only = el("input", { type: "checkbox", checked: true, onchange: draw, "data-only": "" }), search = el("input", { type: "search", placeholder: t("Find a parameter"), "aria-label": t("Find a parameter"), oninput: draw });
        const tbody = el("tbody"), count = settings.filter((row) => row.changed).length;
        function draw() {
          const words = search.value.trim().toLowerCase();
          const shown = settings.filter((row) => (!only.checked || row.changed || words) && (row.name + " " + write.plain(row.value)).toLowerCase().includes(words));
          tbody.replaceChildren(...shown.map((row) => el("tr", { class: row.changed ? "changed" : "", "data-setting": row.name }, el("th", { scope: "row" }, el("code", {}, row.name)), el("td", {}, write.plain(row.value), row.changed && el("span", { class: "badge", title: t("Other than usual") }, t("changed"))), el("td", { class: "soft" }, write.plain(row.usual)))));
          if (!shown.length) tbody.append(el("tr", {}, el("td", { colspan: 3, class: "empty" }, t("Nothing was changed: everything is as usual."))));
        }
        draw();
        const params = el("section", { class: "card stack" }, el("div", { class: "row" }, el("h2", {}, t("Parameters")), el("label", { class: "row" }, only, t("only the {count} that were changed", { count })), el("span", { class: "push" }, search), onPage && el("a", { class: "button", href: `${base}files/params`, download: "" }, "params.yaml")),
          el("div", { class: "scroll" }, el("table", { class: "settings" }, el("thead", {}, el("tr", {}, [t("parameter"), t("value"), t("usual")].map((name) => el("th", { scope: "col" }, name)))), tbody)));
        const steps = el("section", { class: "card stack" }, el("h2", {}, t("Augmentation of the train pictures")), augmentations.length ? el("ol", { class: "steps" }, augmentations.map(({ transform, ...more }) => el("li", {}, el("b", {}, transform), " ", el("span", { class: "soft" }, Object.entries(more).map(([name, value]) => `${name} ${write.plain(value)}`).join(", "))))) : el("p", { class: "soft" }, t("none")));
        const tags = tracking.tags, machine = ["cpu", "cores", "gpu", "torch", "python", "platform"].filter((name) => tags[name]).map((name) => `${name} ${tags[name]}`).join(" · ");
        const origin = el("section", { class: "card stack" }, el("h2", {}, t("Where it comes from")), facts([
          [t("run in MLflow"), el("span", { class: "row" }, el("code", {}, run.run_id), tracking.page && el("a", { class: "button", href: tracking.page, target: "_blank", rel: "noopener noreferrer" }, t("Open in MLflow")))],
          [t("MLflow's address"), el("code", {}, tracking.uri)],
          [t("folder"), el("code", {}, run.folder)],
          [t("commit"), tags.git_commit && el("code", {}, tags.git_commit, tags.git_dirty === "true" ? ` ${t("with uncommitted changes")}` : "")],
          [t("snapshot"), tags.snapshot_hash && el("code", {}, tags.snapshot_hash)],
          [t("machine"), machine || null],
        ]));
        return [params, steps, origin];
      });
    }

    // ---- Report
    function reportPart() {
      if (!run.files.report) return el("p", { class: "card empty" }, t("This run has no report yet: it is written when the run ends."));
      const link = (name, text) => run.files[name] && el("a", { class: "button", href: `${base}files/${name}`, download: "", "data-download": name }, text);
      const bar = onPage && el("div", { class: "row" }, el("a", { class: "button", href: `${base}report/`, target: "_blank", rel: "noopener" }, t("Open in a new tab")), link("notebook", t("Download the notebook")), link("predictions", t("Download the answers as CSV")));
      const frame = el("iframe", { class: "notebook", sandbox: "", title: t("The report of this training"), referrerpolicy: "no-referrer" });
      const code = el("input", { type: "checkbox", "data-code": "", onchange: fill });
      async function fill() {
        if (onPage) frame.src = `${base}report/${code.checked ? "?code=true" : ""}`;
        else await ask("report", { code: code.checked }).then(({ html }) => (frame.srcdoc = html), (error) => tell(error.message));
      }
      fill();
      return el("section", { class: "card stack" }, el("h2", {}, t("Report")), el("p", { class: "soft" }, t("The notebook that was executed, shown without any program in it.")), el("div", { class: "row" }, bar || "", el("label", { class: "row" }, code, t("show the code"))), frame);
    }

    // ---- Promotion
    async function promotion() {
      const content = el("div", { class: "stack" }, el("p", { role: "status" }, t("Looking for what speaks against it. This takes some seconds.")), el("progress"));
      const dialog = el("dialog", { class: "cm dialog card", "aria-label": t("Promote this model"), onclose: () => dialog.remove() }, el("h2", {}, t("Let version {version} be served?", { version: run.version ?? "" })), content);
      place.append(dialog);
      dialog.showModal();
      const close = el("button", { type: "button", onclick: () => dialog.close() }, t("Cancel"));
      try {
        content.replaceChildren(...decision(await ask("examine"), dialog, close));
      } catch (error) {
        content.replaceChildren(el("p", { class: "error" }, error.message), close);
      }
    }
    function decision(found, dialog, close) {
      const against = found.objections, { contest } = found, rows = [];
      if (contest) rows.push([t("against version {version}", { version: contest.versions[0] }), t("{after} of {count} test pictures right, before {before}", { after: write.count(contest.right[1]), before: write.count(contest.right[0]), count: write.count(contest.pictures) })],
        [t("difference"), `${write.share(contest.gain)} (${write.range(contest.gain_low, contest.gain_high)})`], [t("right before, wrong now"), write.count(contest.lost)], [t("wrong before, right now"), write.count(contest.won)], [t("chance of so uneven a result between equals"), write.chance(contest.p_value)]);
      if (found.golden) rows.push([t("golden pictures known"), `${write.count(found.golden_known)} / ${write.count(found.golden)}`]);
      const reason = el("textarea", { rows: 2, required: against.length > 0, "aria-label": t("Reason") }), fault = el("div", { role: "alert" });
      const go = busyButton({ class: against.length ? "danger" : "main", "data-go": "", disabled: against.length > 0 }, against.length ? t("Promote all the same") : t("Let it be served"), async () => {
        await ask("promote", { reason: reason.value, force: against.length > 0 });
        dialog.close();
        await draw();
        trouble.replaceChildren(el("p", { class: "done", role: "status" }, t("This model is the champion now. Servers take it up by themselves.")));
      }, (text) => fault.replaceChildren(el("p", { class: "error" }, text)));
      if (against.length) reason.addEventListener("input", () => (go.disabled = !reason.value.trim()));
      return [
        contest ? "" : el("p", {}, t("No model is served yet, so there is none to compare it with.")),
        rows.length ? facts(rows) : "",
        against.length ? el("div", { class: "error", "data-against": "" }, el("b", {}, t("This speaks against it:")), el("ul", {}, against.map((text) => el("li", {}, text)))) : el("p", { class: "done", "data-free": "" }, t("Nothing speaks against it.")),
        el("label", { class: "stack tight" }, against.length ? t("Why all the same? It is kept with the version, for others to read.") : t("Reason (kept with the version)"), reason),
        fault, el("div", { class: "row" }, el("span", { class: "push" }, close), go),
      ];
    }

    async function draw() {
      run = await ask("overview");
      base = `/theme/${run.theme_id}/training/result/${run.run_id}/`;
      const tabs = [["overview", t("Overview"), overviewPart], ["pictures", t("Pictures"), picturesPart], ["confidence", t("Confidence"), confidencePart], ["data", t("Data"), dataPart], ["settings", t("Settings"), settingsPart], ["report", t("Report"), reportPart]].filter(([key]) => run.confusion.length || !["pictures", "confidence"].includes(key));
      const parts = tabbed(t, tabs, (key) => {
        opened = key;
        if (onPage) history.replaceState(null, "", `#${key}`);
      });
      body.replaceChildren(head(), ...states(), tiles(), ...parts.element);
      parts.open(tabs.some(([key]) => key === opened) ? opened : "overview");
      place.dataset.ready = "yes";
    }
    draw().catch((error) => tell(error.message));
  },
};
