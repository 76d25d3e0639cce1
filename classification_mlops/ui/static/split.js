const SPLITS = ["train", "valid", "test"], PREVIEW_AFTER_MS = 300;

function render({ model, el: place }) {
  const ask = asker(model), t = teller(model), number = figures(model);
  const root = el("div", { class: "cm split stack", "data-lm-suppress-shortcuts": "true" });
  place.append(root);
  const shares = SPLITS.map((name) => el("input", { type: "number", min: 0, max: 100, step: "any", name, "aria-label": splitNames(t)[name], oninput: () => soon() }));
  const seed = el("input", { type: "number", min: 0, max: 2 ** 32 - 1, name: "seed", oninput: () => soon() });
  const go = el("button", { type: "button", class: "main", "data-act": "split", disabled: true, onclick: split }, t("Split the new pictures"));
  const message = el("p", { class: "error", role: "alert", hidden: true }), done = el("p", { class: "done", role: "status", hidden: true }), plan = el("div", { class: "stack" }), past = el("details", {}, el("summary", {}, t("Who split when")));
  root.append(el("p", { class: "soft" }, t("New pictures get a split once and keep it for ever, so that no model is ever examined with pictures it has learnt from. Copies and groups stay together.")),
    el("div", { class: "row" }, SPLITS.map((name, index) => el("label", { class: "row" }, splitNames(t)[name], shares[index], "%")), el("label", { class: "row" }, t("Seed"), seed), go), message, done, plan, past);
  let work = false, waiting = null, turn = 0;

  const wish = () => ({ shares: shares.map((input) => Number(input.value)), seed: Number(seed.value) });
  const say = (error) => { message.textContent = error?.message ?? ""; message.hidden = !message.textContent; };
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(preview, PREVIEW_AFTER_MS); };

  async function preview() {
    const mine = ++turn;
    try {
      const found = await ask("preview", wish());
      if (mine !== turn) return;
      say();
      show(found);
    } catch (error) {
      if (mine !== turn) return;
      go.disabled = true;
      say(error);
    }
  }

  function show(found) {
    const fresh = SPLITS.reduce((sum, name) => sum + found.new[name], 0), sum = (part, name) => found.rows.reduce((all, row) => all + row[part][name], 0);
    const cell = (now, more) => el("td", {}, number.format(now), more ? el("span", { class: "more" }, ` + ${number.format(more)}`) : null);
    fill(plan, fresh ? el("p", {}, t("{count} new pictures would be split:", { count: number.format(fresh) })) : el("p", { class: "soft" }, t("No labeled picture is without a split.")),
      found.quarantined ? el("p", { class: "soft" }, t("{count} pictures wait for a review: what they belong to is in several splits", { count: number.format(found.quarantined) })) : null,
      el("table", {}, el("tr", {}, el("th", {}, t("Label")), SPLITS.map((name) => el("th", {}, splitNames(t)[name]))), found.rows.map((row) => el("tr", {}, el("td", {}, row.label), SPLITS.map((name) => cell(row.now[name], row.new[name])))),
        el("tr", { class: "sum" }, el("td", {}, t("all")), SPLITS.map((name) => cell(sum("now", name), sum("new", name))))));
    go.disabled = !work || !fresh;
    root.dataset.fresh = fresh;
  }

  async function split() {
    go.disabled = true;
    try {
      const found = await ask("split", wish());
      const all = SPLITS.reduce((sum, name) => sum + (found.new[name] ?? 0), 0);
      done.textContent = t("{count} pictures were split.", { count: number.format(all) });
      done.hidden = false;
      await refresh();
      root.dataset.split = all;
    } catch (error) {
      say(error);
    }
  }

  async function refresh() {
    const found = await ask("start");
    work = found.may.work;
    if (seed.value === "") {
      shares.forEach((input, index) => (input.value = found.shares[index]));
      seed.value = found.seed;
    }
    const when = (text) => new Date(/[zZ]|[+-]\d\d:?\d\d$/.test(text) ? text : text + "Z").toLocaleString(model.get("language"));
    fill(past, past.firstChild, found.history.length ? el("table", {}, found.history.map((one) => el("tr", {}, el("td", { class: "soft" }, when(one.created_at)), el("td", {}, one.actor), el("td", {}, SPLITS.map((name) => `${splitNames(t)[name]} ${number.format(one.counts[name] ?? 0)}`).join(" · "))))) : el("p", { class: "soft" }, t("Nobody has split yet.")));
    await preview();
    root.dataset.ready = "1";
  }
  refresh().catch(say);
  root.addEventListener("refresh", () => refresh().catch(say));
}

export default { render };
