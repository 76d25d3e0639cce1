// What the screens of results and of histories share: numbers, dates, and small drawings.

const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a6d00"];

/** Numbers as people of that language write them. */
function writer(model) {
  const language = model.get("language"), zone = (text) => (/[zZ]|[+-]\d\d:?\d\d$/.test(text) ? text : text + "Z");
  const number = (most) => new Intl.NumberFormat(language, { maximumFractionDigits: most });
  const percent = new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const tenth = new Intl.NumberFormat(language, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const moment = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
  const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
  return {
    known,
    count: (value) => (known(value) ? number(0).format(value) : "–"),
    figure: (value, most = 3) => (known(value) ? number(most).format(value) : "–"),
    chance: (value) => (known(value) ? new Intl.NumberFormat(language, { maximumSignificantDigits: 2 }).format(value) : "–"),
    share: (value) => (known(value) ? percent.format(value) : "–"),
    range: (low, high) => (known(low) && known(high) ? `${tenth.format(100 * low)} ${low < 0 ? "…" : "–"} ${percent.format(high)}` : ""), // A dash before a minus cannot be read
    moment: (text) => (text ? moment.format(new Date(zone(text))) : "–"),
    since: (from, until) => (from && until ? (new Date(zone(until)) - new Date(zone(from))) / 1000 : null),
    plain: (value) => (value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value)),
  };
}

/** Seconds as people say them. */
function spell(t, seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return t("{count} s", { count: Math.round(seconds) });
  if (seconds < 3600) return t("{minutes} min {seconds} s", { minutes: Math.floor(seconds / 60), seconds: Math.round(seconds % 60) });
  return t("{hours} h {minutes} min", { hours: Math.floor(seconds / 3600), minutes: Math.round((seconds % 3600) / 60) });
}

/** What a job's status is called, and how it looks. */
function statusBadge(t, status) {
  const names = {
    queued: t("queued"), running: t("running"), paused: t("paused"), finished: t("finished"),
    failed: t("failed"), cancelled: t("cancelled"), interrupted: t("interrupted"),
  };
  const looks = { finished: "good", failed: "bad", interrupted: "bad" };
  return el("span", { class: `badge ${looks[status] ?? ""}`, "data-status": status }, names[status] ?? status);
}

/** Whole and easy steps that cover a range. */
function ticksOf(low, high, about = 4) {
  const raw = (high - low || 1) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push(+(n * step).toPrecision(12));
  return found;
}

/** A share with its interval, as a dot on a line from 0 to 1. */
function intervalBar(write, value, low, high, color = COLORS[0]) {
  if (!write.known(value)) return el("span", { class: "soft" }, "–");
  const x = (share) => 4 + 92 * Math.min(1, Math.max(0, share));
  const line = write.known(low) && svg("line", { x1: x(low), x2: x(high), y1: 7, y2: 7, stroke: color, "stroke-width": 3, "stroke-linecap": "round", opacity: 0.35 });
  return svg("svg", { class: "bar-interval", viewBox: "0 0 100 14", width: 100, height: 14, role: "img", "aria-label": `${write.share(value)} (${write.range(low, high)})` },
    svg("line", { x1: 4, x2: 96, y1: 7, y2: 7, stroke: "#d9e0e7" }), line || [], svg("circle", { cx: x(value), cy: 7, r: 4, fill: color }));
}

/** Lines over epochs, with the values of an epoch on pointing at it or by the arrow keys. */
function lineChart({ t, write, title, series, mark, format = (value) => write.figure(value), where = (x) => t("epoch {number}", { number: x }) }) {
  const W = 460, H = 230, L = 46, R = 10, T = 10, B = 28;
  const drawn = series.filter((one) => one.points.length), points = drawn.flatMap((one) => one.points);
  const values = el("div", { class: "values soft", "aria-live": "polite" });
  const legend = el("div", { class: "legend" }, drawn.map((one) =>
    el("span", {}, svg("svg", { width: 22, height: 8, "aria-hidden": "true" }, svg("line", { x1: 1, x2: 21, y1: 4, y2: 4, stroke: one.color, "stroke-width": 2.5, "stroke-dasharray": one.dash })), one.name)));
  const figure = el("figure", { class: "chart" }, el("figcaption", {}, title));
  if (!points.length) {
    figure.append(el("p", { class: "empty" }, t("No curve was kept.")));
    return figure;
  }
  const xs = [...new Set(points.map(([x]) => x))].sort((a, b) => a - b);
  let low = Math.min(...points.map(([, y]) => y)), high = Math.max(...points.map(([, y]) => y));
  const gap = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [low - gap, high + gap];
  const [first, last] = [xs[0], xs.at(-1)];
  const px = (x) => L + ((W - L - R) * (x - first)) / (last - first || 1), py = (y) => T + (H - T - B) * (1 - (y - low) / (high - low));
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "plot", tabindex: 0, role: "img", "aria-label": title });
  for (const y of ticksOf(low, high))
    picture.append(svg("line", { x1: L, x2: W - R, y1: py(y), y2: py(y), class: "grid" }), svg("text", { x: L - 6, y: py(y) + 4, "text-anchor": "end" }, format(y)));
  for (const x of ticksOf(first, last, Math.min(8, Math.max(1, xs.length - 1))))
    if (Number.isInteger(x)) picture.append(svg("text", { x: px(x), y: H - 9, "text-anchor": "middle" }, write.count(x)));
  if (mark) picture.append(svg("line", { x1: px(mark), x2: px(mark), y1: T, y2: H - B, class: "mark" }, svg("title", {}, t("the weights of this epoch were kept"))));
  for (const one of drawn) {
    const path = one.points.map(([x, y], n) => `${n ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    picture.append(svg("path", { d: path, fill: "none", stroke: one.color, "stroke-width": 2, "stroke-dasharray": one.dash, "data-series": one.name }));
    if (one.points.length < 25) for (const [x, y] of one.points) picture.append(svg("circle", { cx: px(x), cy: py(y), r: 2.6, fill: one.color }));
  }
  const pointer = svg("line", { y1: T, y2: H - B, class: "pointer" });
  picture.append(pointer);
  let at = null;
  const show = (x) => {
    at = x;
    pointer.setAttribute("x1", px(x));
    pointer.setAttribute("x2", px(x));
    pointer.classList.add("on");
    const said = drawn.flatMap((one) => one.points.filter(([other]) => other === x).map(([, y]) => `${one.name} ${format(y)}`));
    values.textContent = `${where(x)}: ${said.join("  ·  ")}`;
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect(), x = first + (((event.clientX - box.left) / box.width) * W - L) / (W - L - R) * (last - first);
    show(xs.reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best)));
  });
  picture.addEventListener("pointerleave", () => { pointer.classList.remove("on"); values.textContent = ""; });
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(xs[Math.min(xs.length - 1, Math.max(0, (at === null ? (step > 0 ? -1 : xs.length) : xs.indexOf(at)) + step))]);
  });
  figure.append(picture, legend, values);
  return figure;
}

/** The series of some metrics over the epochs of a run. */
const curve = (rows, name) => (rows ?? []).filter((row) => Number.isFinite(row[name])).map((row) => [row.epoch, row[name]]);

/** Where a thumbnail is: an address on a page, bytes in a notebook. */
function thumbOf(model, row, buffer) {
  if (model.get("media")) return row.id ? `${model.get("media")}thumb/${row.id}` : null;
  return buffer?.byteLength ? URL.createObjectURL(new Blob([buffer], { type: "image/webp" })) : null;
}

/** A button that works until its promise is kept, and says what went wrong beside it. */
function busyButton(attributes, text, act, tell) {
  const button = el("button", { type: "button", ...attributes, onclick: async () => {
    button.disabled = true;
    try {
      await act();
    } catch (error) {
      tell(error.message ?? String(error));
    } finally {
      button.disabled = false;
    }
  } }, text);
  return button;
}
