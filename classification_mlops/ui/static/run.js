const LOOK_AT_LOG_MS = 2000;
const ACTIVE = ["running", "queued", "paused", "interrupted"];

function render({ model, el: place }) {
  const ask = asker(model), t = teller(model), write = writer(model);
  const state = { jobs: [], chosen: null, points: [], of: null, may: {}, theme: null };

  const message = el("p", { class: "error", role: "alert", hidden: true });
  const start = el("section", { class: "card stack start", "aria-label": t("Start a training") }), jobs = el("ul", { class: "jobs", "aria-label": t("Trainings of this theme") });
  const chosen = el("section", { class: "stack chosen" });
  const root = el("div", { class: "cm run", tabindex: "0", "data-lm-suppress-shortcuts": "true" }, message, start,
    el("div", { class: "desk" }, el("aside", { class: "card stack" }, el("h2", {}, t("Trainings of this theme")), jobs), chosen));
  place.append(root);

  const say = (error) => {
    message.textContent = error?.message ?? "";
    message.hidden = !message.textContent;
  };
  const current = () => state.jobs.find((job) => job.id === state.chosen);

  // --- before a training -----------------------------------------------------------------------------------------------
  const epochs = el("input", { type: "number", min: 1, max: 100000, name: "epochs" }), architecture = el("input", { name: "architecture", maxlength: 100 });

  function showStart(found) {  // What somebody has typed stays when a training ends meanwhile
    const places = ["train", "valid", "test", "unsplit"];
    const sums = Object.fromEntries(places.map((name) => [name, Object.values(found.counts).reduce((sum, one) => sum + one[name], 0)]));
    const tile = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, write.count(value)));
    const typing = [epochs, architecture].find((input) => input.matches(":focus"));
    epochs.placeholder = found.epochs;
    architecture.placeholder = found.architecture;
    const begin = (queue) => async () => {
      say();
      const made = await ask("begin", { epochs: epochs.value ? Number(epochs.value) : null, architecture: architecture.value, queue, key: newKey() });
      await choose(made.job ?? made.job_id);
    };
    fill(start, el("div", { class: "row" }, el("h2", {}, t("Start a training")), el("span", { class: "soft" }, found.seconds ? t("takes about {time}", { time: spell(t, found.seconds) }) : "")),
      el("dl", { class: "tiles" }, places.map((name) => tile(splitNames(t)[name], sums[name]))),
      sums.unsplit ? el("p", { class: "soft" }, t("Pictures without a split get one when the training begins, and keep it for ever.")) : null,
      found.doubts.length ? el("ul", { class: "doubts" }, found.doubts.map((one) => el("li", {}, one))) : null,
      el("div", { class: "row" }, el("label", {}, el("span", { class: "soft" }, t("Epochs")), epochs), el("label", {}, el("span", { class: "soft" }, t("Architecture")), architecture),
        busyButton({ class: "main", disabled: !state.may.work, "data-act": "begin" }, t("Start now"), begin(false), (text) => say({ message: text })),
        busyButton({ disabled: !state.may.work, title: t("A worker begins it when it is free: cmlops worker"), "data-act": "queue" }, t("Leave it to a worker"), begin(true), (text) => say({ message: text })),
        model.get("media") ? el("a", { class: "button", href: `/theme/${found.theme}/training/config/` }, t("All settings")) : null));
    typing?.focus();
  }

  // --- the list --------------------------------------------------------------------------------------------------------
  const shareOf = (job) => (job.progress.steps ? job.progress.step / job.progress.steps : job.status === "finished" ? 1 : 0);

  function showJobs() {
    if (!state.jobs.length) return fill(jobs, el("li", { class: "empty" }, t("Nothing has been trained yet.")));
    return fill(jobs, state.jobs.map((job) => el("li", {}, el("button", { type: "button", class: "job", "data-job": job.id, "aria-pressed": String(job.id === state.chosen), onclick: () => choose(job.id) },
      el("span", { class: "row" }, el("strong", {}, `#${job.id}`), statusBadge(t, job.status), el("span", { class: "soft small push" }, write.moment(job.created_at))),
      ACTIVE.includes(job.status) ? el("progress", { max: 1, value: shareOf(job) }) : null, job.overrides.length ? el("span", { class: "soft small" }, job.overrides.map((one, n) => [n ? ", " : "", setting(one)])) : null))));
  }

  // --- one training ----------------------------------------------------------------------------------------------------
  const head = el("div", { class: "card stack" }), charts = el("div", { class: "charts" });
  const log = el("pre", { class: "log", tabindex: "0" }), find = el("input", { type: "search", placeholder: t("Search the log"), "aria-label": t("Search the log"), oninput: () => showLog() });
  const logs = el("details", { class: "card" }, el("summary", {}, t("Log")), find, log);
  let text = "";

  function showHead() {
    const job = current();
    if (!job) return fill(chosen, el("p", { class: "empty" }, t("Start a training, or choose one on the left, to see how it goes.")));
    const { progress } = job, wish = (name) => () => ask("control", { number: job.id, wish: name });
    const button = (name, said, attributes) => busyButton({ "data-act": name, disabled: !state.may.work, ...attributes }, said, wish(name), (why) => say({ message: why }));
    const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
    fill(head, el("div", { class: "row" }, el("h2", {}, t("Training {number}", { number: job.id })), statusBadge(t, job.status), job.control && job.status === "running" ? el("span", { class: "soft" }, t("asked to: {wish}", { wish: { pause: t("Pause"), cancel: t("Cancel training"), resume: t("Resume") }[job.control] ?? job.control })) : null,
        el("span", { class: "row push" },
          job.status === "running" ? button("pause", t("Pause")) : null, ["paused", "interrupted"].includes(job.status) ? button("resume", t("Resume"), { class: "main" }) : null,
          ACTIVE.includes(job.status) ? button("cancel", t("Cancel training"), { class: "danger" }) : null,
          job.status === "finished" && model.get("media") ? el("a", { class: "button main", href: `/theme/${state.theme}/training/result/${job.run}/` }, t("See the result")) : null)),
      el("progress", { max: 1, value: shareOf(job), "aria-label": t("Progress") }),
      el("dl", { class: "tiles" }, fact(t("Stage"), ACTIVE.includes(job.status) ? stages[progress.stage] ?? progress.stage ?? "–" : "–"), fact(t("Epoch"), progress.epoch ? `${progress.epoch} / ${progress.epochs}` : "–"), fact(t("Step"), progress.step ? `${write.count(progress.step)} / ${write.count(progress.steps)}` : "–"),
        fact(t("Loss"), write.figure(progress.loss)), fact(t("Time left"), job.status === "running" ? spell(t, progress.time_left_s) : "–")),
      job.error ? el("p", { class: "error" }, job.error) : null);
    if (!head.isConnected) fill(chosen, head, charts, logs);
    return head;
  }
  const stages = { starting: t("starting"), preparing: t("preparing"), pictures: t("pictures"), training: t("training"), valid: t("valid"), tuning: t("tuning") };

  function showCharts() {
    const steps = state.points.filter((point) => Number.isFinite(point.loss)).map((point) => [point.step, point.loss]);
    const epochs = state.points.filter((point) => point.metrics).map((point) => ({ epoch: point.epoch, ...point.metrics }));
    const rows = [...new Map(epochs.map((row) => [row.epoch, row])).values()];
    const lines = (names) => names.map(([name, said, color]) => ({ name: said, color, points: curve(rows, name) }));
    fill(charts, lineChart({ t, write, title: t("Loss by step"), where: (x) => t("step {number}", { number: x }), series: [{ name: t("train"), color: COLORS[0], points: steps }] }),
      lineChart({ t, write, title: t("Loss by epoch"), series: lines([["train_loss", t("train"), COLORS[0]], ["valid_loss", t("valid"), COLORS[1]]]) }),
      lineChart({ t, write, title: t("Accuracy by epoch"), series: lines([["train_accuracy", t("train"), COLORS[0]], ["valid_accuracy", t("valid"), COLORS[1]]]), format: (value) => write.share(value) }));
    charts.dataset.points = state.points.length;
    charts.dataset.epochs = rows.length;
  }

  function showLog() {
    const words = find.value.toLowerCase(), atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    log.textContent = words ? text.split("\n").filter((line) => line.toLowerCase().includes(words)).join("\n") : text;
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
  const readLog = async () => {
    if (!root.isConnected && document.body) return;
    if (logs.open && state.chosen) {
      text = await ask("log", { number: state.chosen }).catch(() => text);
      showLog();
    }
    setTimeout(readLog, LOOK_AT_LOG_MS);
  };

  async function choose(number) {
    state.chosen = number;
    try {
      const found = await ask("watch", { number });
      Object.assign(state, { points: found.points, of: found.run });
      text = found.log;
    } catch (error) {
      say(error);
    }
    root.dataset.watching = number;
    show();
  }

  function show() {
    showJobs();
    if (showHead()) {
      showCharts();
      showLog();
    }
  }

  // --- news ------------------------------------------------------------------------------------------------------------
  model.on("msg:custom", (content) => {
    if (!content.jobs) return;
    const before = current()?.status;
    state.jobs = content.jobs;
    if (content.of === state.of && content.points.length) {
      for (const point of content.points) {
        while (state.points.length && state.points.at(-1).step > point.step) state.points.pop();
        state.points.push(point);
      }
      showCharts();
    }
    showJobs();
    if (state.chosen) showHead();
    if (before && before !== current()?.status) refresh();
  });

  async function refresh() {
    try {
      const found = await ask("start");
      Object.assign(state, { jobs: found.jobs, may: found.may, theme: found.theme });
      showStart(found);
      return found;
    } catch (error) {
      return say(error);
    }
  }
  model.on("connected", async () => {
    await refresh();
    if (state.chosen) await choose(state.chosen);
  });

  (async () => {
    if (!(await refresh())) return;
    const busy = state.jobs.find((job) => ACTIVE.includes(job.status)) ?? state.jobs[0];
    if (busy) await choose(busy.id);
    else show();
    root.dataset.ready = "1";
    readLog();
  })();
}

export default { render };
