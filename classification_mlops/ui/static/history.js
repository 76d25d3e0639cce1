const MOST_COMPARED = 5;

export default {
  render({ model, el: place }) {
    const ask = asker(model), t = teller(model), write = writer(model), onPage = Boolean(model.get("media"));
    const trouble = el("div", { role: "alert" });
    const tell = (text) => trouble.replaceChildren(el("p", { class: "error" }, text, " ", el("button", { type: "button", class: "plain", "aria-label": t("Close"), onclick: () => trouble.replaceChildren() }, "✕")));
    const list = el("div", { class: "stack" }, el("p", { class: "soft" }, t("Loading…"))), versus = el("div", { class: "stack", hidden: true });
    place.classList.add("cm", "history");
    place.tabIndex = 0;
    place.setAttribute("data-lm-suppress-shortcuts", "true");
    place.append(trouble, list, versus);
    const chosen = [];
    let rows = [], facts = {}, sort = { key: "created_at", down: true };
    const wish = { text: "", status: "", architecture: "", since: "" };
    const address = (run) => (onPage && run ? `/theme/${facts.theme_id}/training/result/${run}/` : null);
    const kinds = { train: t("Training"), tune: t("Tuning"), evaluate: t("Evaluation"), drift: t("Drift") };

    // ---- The list
    const columns = [
      { key: "created_at", name: t("Training"), value: (row) => row.created_at },
      { key: "status", name: t("Status"), value: (row) => row.status },
      { key: "test_accuracy", name: t("Accuracy"), value: (row) => row.test_accuracy, help: t("Of the test pictures; the line says where the true value lies, 19 times of 20") },
      { key: "test_macro_f1", name: t("Mean F1"), value: (row) => row.test_macro_f1 },
      { key: "architecture", name: t("Architecture and settings"), value: (row) => row.architecture, help: t("Below the architecture stands what was set for this run alone") },
      { key: "epochs", name: t("Epochs"), value: (row) => row.epochs },
      { key: "took", name: t("Took"), value: (row) => write.since(row.started_at, row.finished_at) },
    ];
    function fits(row) {
      const text = [row.run_id, row.architecture, row.kind, row.error, row.version && `v${row.version}`, ...row.changes, ...row.aliases].join(" ").toLowerCase();
      return wish.text.toLowerCase().split(/\s+/).every((word) => text.includes(word)) && (!wish.status || row.status === wish.status)
        && (!wish.architecture || row.architecture === wish.architecture) && (!wish.since || (row.created_at ?? "").slice(0, 10) >= wish.since);
    }
    function inOrder(found) {
      const { value } = columns.find((one) => one.key === sort.key), known = (x) => x !== undefined && x !== null && x !== "";
      return [...found].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (known(x) !== known(y)) return known(x) ? -1 : 1; // What is not known comes last, whichever way
        return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1);
      });
    }
    const measure = (row, name) => el("td", { class: "measure", "data-value": name }, write.known(row[name]) ? [el("span", {}, write.share(row[name])), intervalBar(write, row[name], row[`${name}_low`], row[`${name}_high`])] : el("span", { class: "soft" }, "–"));
    function line(row) {
      const usable = row.run_id && row.has_model, at = chosen.indexOf(row.run_id), full = chosen.length >= MOST_COMPARED && at < 0;
      const check = el("input", { type: "checkbox", checked: at >= 0, disabled: !usable || full, "aria-label": t("Choose for comparison"), title: !usable ? t("Only trainings that gave a model can be compared") : full ? t("Five at most") : t("Choose for comparison"), onchange: () => {
        if (at < 0) chosen.push(row.run_id);
        else chosen.splice(at, 1);
        draw();
      } });
      const name = write.moment(row.created_at), link = address(row.run_id);
      const badges = [row.version && el("span", { class: "badge" }, `v${row.version}`), row.aliases.map((alias) => el("span", { class: `badge ${alias === "champion" ? "good" : ""}` }, alias === "champion" ? t("champion") : alias === "challenger" ? t("challenger") : alias)), row.kind !== "train" && el("span", { class: "badge" }, kinds[row.kind] ?? row.kind)];
      return el("tr", { "data-run": row.run_id ?? "", class: at >= 0 ? "chosen" : "" }, el("td", {}, check),
        el("th", { scope: "row" }, link ? el("a", { href: link }, name) : el("span", {}, name), el("div", { class: "row tightrow" }, badges, row.run_id && el("code", { class: "soft small" }, row.run_id.slice(0, 8)))),
        el("td", {}, statusBadge(t, row.status), row.error && el("div", { class: "soft small fault", title: row.error }, row.error)), measure(row, "test_accuracy"), el("td", { "data-value": "test_macro_f1" }, write.share(row.test_macro_f1)),
        el("td", { class: "changes" }, row.architecture ?? "–", row.changes.map((one) => el("code", { class: "soft" }, setting(one)))),
        el("td", {}, write.count(row.epochs)), el("td", { class: "soft" }, spell(t, write.since(row.started_at, row.finished_at))));
    }
    const tbody = el("tbody"), count = el("span", { class: "soft", role: "status" }), bar = el("div", { class: "row compare", hidden: true });
    const heads = columns.map(({ key, name, help }) => el("th", { scope: "col", title: help }, el("button", { type: "button", class: "plain", "data-sort": key, onclick: () => {
      sort = { key, down: sort.key === key ? !sort.down : key !== "architecture" && key !== "status" };
      draw();
    } }, name, el("i", { "aria-hidden": "true" }))));
    const choice = (name, label) => el("select", { "aria-label": label, "data-filter": name, onchange: (event) => { wish[name] = event.target.value; draw(); } });
    const status = choice("status", t("Status")), architecture = choice("architecture", t("Architecture"));
    const search = el("input", { type: "search", placeholder: t("Search runs and settings"), "aria-label": t("Search runs and settings"), "data-filter": "text", oninput: (event) => { wish.text = event.target.value.trim(); draw(); } });
    const since = el("input", { type: "date", "aria-label": t("Since"), "data-filter": "since", onchange: (event) => { wish.since = event.target.value; draw(); } });
    const clear = el("button", { type: "button", "data-clear": "", onclick: () => {
      Object.keys(wish).forEach((name) => (wish[name] = ""));
      for (const one of [search, since, status, architecture]) one.value = "";
      draw();
    } }, t("Show all"));
    const table = el("div", { class: "scroll" }, el("table", { class: "runs" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "sr" }, t("Compare"))), heads)), tbody));
    const compare = el("button", { type: "button", class: "main", "data-compare": "", onclick: () => show([...chosen]) });
    bar.append(compare, el("button", { type: "button", onclick: () => { chosen.length = 0; draw(); } }, t("Choose none")), el("span", { class: "soft" }, t("The one chosen first is what the others are compared with.")));
    const filters = el("div", { class: "row filters" }, search, status, architecture, el("label", { class: "row" }, t("Since"), since), clear, count);

    function options(select, all, values) {
      const before = select.value;
      select.replaceChildren(el("option", { value: "" }, all), ...values.map(([value, name]) => el("option", { value }, name)));
      select.value = values.some(([value]) => value === before) ? before : "";
    }
    function draw() {
      const found = inOrder(rows.filter(fits));
      tbody.replaceChildren(...found.map(line));
      if (!found.length) tbody.append(el("tr", {}, el("td", { colspan: columns.length + 1, class: "empty" }, t("No training fits. Show all, or look for something else."))));
      heads.forEach((head, n) => {
        const on = columns[n].key === sort.key;
        head.setAttribute("aria-sort", on ? (sort.down ? "descending" : "ascending") : "none");
        head.querySelector("i").textContent = on ? (sort.down ? " ↓" : " ↑") : "";
      });
      count.textContent = found.length === rows.length ? t("{count} trainings", { count: write.count(rows.length) }) : t("{found} of {count} trainings", { found: write.count(found.length), count: write.count(rows.length) });
      if (rows.length >= facts.most) count.textContent += ` · ${t("older ones: cmlops jobs list")}`;
      clear.hidden = !Object.values(wish).some(Boolean);
      bar.hidden = !chosen.length;
      compare.disabled = chosen.length < 2;
      compare.textContent = chosen.length < 2 ? t("Choose one more to compare") : t("Compare {count} trainings", { count: chosen.length });
    }
    async function load() {
      facts = await ask("runs");
      rows = facts.runs;
      const names = new Map([...new Set(rows.map((row) => row.status))].map((name) => [name, statusBadge(t, name).textContent]));
      options(status, t("Any status"), [...names]);
      options(architecture, t("Any architecture"), [...new Set(rows.map((row) => row.architecture).filter(Boolean))].sort().map((name) => [name, name]));
      const silent = facts.trouble ? [el("p", { class: "error", "data-trouble": "" }, facts.trouble)] : [];
      if (rows.length) list.replaceChildren(...silent, el("section", { class: "card stack" }, filters, bar, table));
      else list.replaceChildren(...silent, el("section", { class: "card empty stack", "data-empty": "" }, el("h2", {}, t("Nothing was trained yet")), el("p", {}, t("A training needs at least three labels with three pictures each. Its result will stand here, to be looked at and compared.")), el("div", { class: "row" }, onPage && facts.may ? el("a", { class: "button", href: `/theme/${facts.theme_id}/training/run/` }, t("Start a training")) : el("code", {}, "cmlops train"))));
      draw();
      place.dataset.ready = "yes";
    }

    // ---- Some of them side by side
    const letters = "ABCDE";
    const remember = (runs) => onPage && history.replaceState(null, "", runs.length ? `#compare=${runs.join(",")}` : location.pathname);
    function back() {
      versus.hidden = true;
      list.hidden = false;
      remember([]);
      compare.focus();
    }
    async function show(runs) {
      trouble.replaceChildren();
      const shown = runs.map((id) => rows.find((row) => row.run_id === id));
      try {
        const found = await ask("compare", { runs });
        versus.replaceChildren(...sideBySide(runs, shown, found));
        list.hidden = true;
        versus.hidden = false;
        versus.dataset.ready = "yes";
        remember(runs);
        versus.querySelector("button")?.focus();
      } catch (error) {
        tell(error.message);
      }
    }
    const letter = (n) => el("b", { class: "letter", style: `background:${COLORS[n]}` }, letters[n]);
    function sideBySide(runs, shown, found) {
      const name = (n) => {
        const text = shown[n]?.version ? t("version {version}", { version: shown[n].version }) : runs[n].slice(0, 8);
        return el("div", { class: "row tightrow" }, letter(n), el("div", { class: "whose" }, address(runs[n]) ? el("a", { href: address(runs[n]) }, text) : text, el("span", { class: "soft small" }, write.moment(shown[n]?.created_at))));
      };
      const headRow = (first) => el("thead", {}, el("tr", {}, el("th", { scope: "col" }, first), runs.map((_, n) => el("th", { scope: "col" }, name(n)))));
      const cellOf = (metrics, key, n) => el("td", { class: "measure", "data-metric": key, "data-n": n }, write.known(metrics[key]) ? [el("span", {}, key === "test_loss" || key === "test_calibration_error" ? write.figure(metrics[key]) : write.share(metrics[key])), write.known(metrics[`${key}_low`]) ? intervalBar(write, metrics[key], metrics[`${key}_low`], metrics[`${key}_high`], COLORS[n]) : ""] : "–");
      const titles = { test_accuracy: t("Accuracy"), test_macro_f1: t("Mean F1"), test_macro_precision: t("Mean precision"), test_macro_recall: t("Mean recall"), test_clean_accuracy: t("Accuracy without leaks"), test_accepted: t("Accepted answers"), test_accepted_accuracy: t("Right among the accepted"), test_miss_rate: t("Missed defects"), test_overkill_rate: t("Good pictures rejected"), test_cost: t("Cost of a picture"), test_loss: t("Loss on test"), test_calibration_error: t("Calibration error") };
      const metrics = Object.entries(titles).filter(([key]) => found.metrics.some((one) => write.known(one[key])));
      const numbers = el("section", { class: "card stack" }, el("h2", {}, t("Numbers")), el("div", { class: "scroll" }, el("table", { class: "numbers" }, headRow(""), el("tbody", {}, el("tr", {}, el("th", { scope: "row" }, t("test pictures")), runs.map((_, n) => el("td", {}, write.count(found.tests[n])))), metrics.map(([key, title]) => el("tr", {}, el("th", { scope: "row" }, title), runs.map((_, n) => cellOf(found.metrics[n], key, n))))))),
        el("p", { class: "soft small" }, t("Intervals that overlap widely say that the difference may be chance.")));
      const series = (metric) => runs.flatMap((_, n) => [["valid", undefined], ["train", "4 3"]].map(([split, dash]) => ({ name: `${letters[n]} ${split === "valid" ? t("valid") : t("train")}`, color: COLORS[n], dash, points: curve(found.learning[n].rows, `${split}_${metric}`) })));
      const curves = el("section", { class: "card stack" }, el("h2", {}, t("Learning")), el("div", { class: "charts" }, lineChart({ t, write, title: t("Loss"), series: series("loss") }), lineChart({ t, write, title: t("Accuracy"), series: series("accuracy"), format: write.share })));
      const settings = el("section", { class: "card stack" }, el("h2", {}, t("Parameters that differ")), found.settings.length ? el("div", { class: "scroll" }, el("table", { class: "differs" }, headRow(t("parameter")), el("tbody", {}, found.settings.map((row) => el("tr", { "data-setting": row.name }, el("th", { scope: "row" }, el("code", {}, row.name)), row.values.map((value, n) => el("td", { class: n && JSON.stringify(value) !== JSON.stringify(row.values[0]) ? "other" : "" }, write.plain(value)))))))) : el("p", { class: "soft" }, t("none: they were asked for the same")));
      const labels = [...new Set(found.classes.flatMap((own) => own.map((row) => row.label)))];
      const spread = (label) => { const own = found.classes.map((rows) => rows.find((row) => row.label === label)?.recall).filter(write.known); return Math.max(...own) - Math.min(...own); };
      labels.sort((a, b) => spread(b) - spread(a));
      const recalls = labels.length ? el("section", { class: "card stack" }, el("h2", {}, t("How much of each label is found (recall), the largest difference first")), el("div", { class: "scroll" }, el("table", {}, headRow(t("label")), el("tbody", {}, labels.slice(0, 60).map((label) => el("tr", {}, el("th", { scope: "row" }, label), runs.map((_, n) => { const row = found.classes[n].find((one) => one.label === label); return el("td", { class: "measure" }, row ? [el("span", {}, write.share(row.recall)), intervalBar(write, row.recall, row.recall_low, row.recall_high, COLORS[n])] : "–"); }))))), labels.length > 60 ? el("p", { class: "soft" }, t("and {count} more", { count: write.count(labels.length - 60) })) : "")) : "";
      return [el("div", { class: "row" }, el("button", { type: "button", "data-back": "", onclick: back }, `← ${t("All trainings")}`), el("h2", {}, t("{count} trainings side by side", { count: runs.length }))), numbers, flipsPart(runs, found), curves, settings, recalls].filter(Boolean);
    }
    function flipsPart(runs, found) {
      const wall = el("ul", { class: "wall" }), title = el("h3", {}), more = el("button", { type: "button", hidden: true }, t("Show more"));
      const buttons = [];
      let turn = 0;
      async function open(n, side, button, start = 0) {
        const mine = ++turn;
        wall.dataset.ready = "no";
        buttons.forEach((one) => one.setAttribute("aria-pressed", one === button));
        title.textContent = side === "lost" ? t("Right in {first}, wrong in {second}", { first: "A", second: letters[n] }) : t("Wrong in {first}, right in {second}", { first: "A", second: letters[n] });
        try {
          const { pictures, buffers } = await ask("flips", { first: runs[0], second: runs[n], side, start });
          if (mine !== turn) return;
          if (!start) wall.replaceChildren();
          pictures.forEach((row, at) => wall.append(flip(row, n, thumbOf(model, row, buffers?.[at]))));
          more.hidden = pictures.length < 60;
          more.onclick = () => open(n, side, button, start + pictures.length);
          wall.dataset.ready = "yes";
        } catch (error) {
          tell(error.message);
        }
      }
      const flip = (row, n, source) => {
        const says = (at, answer) => el("span", {}, letter(at), " ", el("b", { class: answer === row.label ? "right" : "wrong" }, answer));
        return el("li", { "data-flip": row.id ?? "" }, el("div", { class: "picture", title: row.name ?? "" }, source ? el("img", { src: source, alt: t("Picture of {label}", { label: row.label }), loading: "lazy" }) : el("span", { class: "gone" }, t("This picture was deleted.")), el("span", { class: "caption" }, el("span", { class: "full" }, row.label), says(0, row.before), says(n, row.after), row.id && row.today !== row.label ? el("span", { class: "now" }, t("now: {label}", { label: row.today ?? t("no label") })) : "")));
      };
      const pairs = found.against.map((own, at) => {
        const n = at + 1;
        if (!own.pictures) return el("tr", {}, el("th", { scope: "row" }, letter(0), " – ", letter(n)), el("td", { colspan: 4, class: "soft" }, t("They have no test picture in common.")));
        const button = (side, count, text) => {
          const made = el("button", { type: "button", "aria-pressed": "false", disabled: !count, "data-flips": `${side}-${n}`, title: text, onclick: () => open(n, side, made) }, write.count(count));
          buttons.push(made);
          return made;
        };
        const sure = own.p_value < 0.05 ? (own.gain > 0 ? t("better, hardly by chance") : t("worse, hardly by chance")) : t("may be chance");
        return el("tr", { "data-pair": n }, el("th", { scope: "row" }, letter(0), " – ", letter(n)), el("td", {}, write.count(own.pictures)), el("td", {}, button("lost", own.lost, t("Show the pictures that only the first knows"))), el("td", {}, button("won", own.won, t("Show the pictures that only the second knows"))),
          el("td", {}, `${own.gain > 0 ? "+" : ""}${write.share(own.gain)}`, " ", el("span", { class: "soft" }, `(${write.range(own.gain_low, own.gain_high)}) · ${sure}`)));
      });
      const relabeled = Math.max(0, ...found.against.map((own) => own.relabeled));
      return el("section", { class: "card stack" }, el("h2", {}, t("Pictures about which they differ")), el("div", { class: "scroll" }, el("table", { class: "flips" }, el("thead", {}, el("tr", {}, [t("pair"), t("test pictures in common"), t("right before, wrong now"), t("wrong before, right now"), t("difference of the accuracies")].map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, pairs))),
        relabeled ? el("p", { class: "soft small" }, t("{count} pictures had another label in between and count for neither.", { count: write.count(relabeled) })) : "", title, wall, more);
    }

    model.on("msg:custom", (content) => content.changed && load().catch((error) => tell(error.message)));
    load().then(() => {
      const wanted = onPage && /^#compare=([0-9a-f,]+)$/.exec(location.hash)?.[1].split(",");
      if (wanted?.length > 1) {
        chosen.push(...wanted.filter((id) => rows.some((row) => row.run_id === id)));
        draw();
        if (chosen.length > 1) show([...chosen]);
      }
    }, (error) => tell(error.message));
  },
};
