// Pictures are dropped or chosen; batches go one after another, and a batch that was cut off goes again: the same bytes
// are the same picture, so nothing arrives twice.
const BATCH_FILES = 500, BATCH_BYTES = 48 * 2 ** 20, AT_ONCE = 2, PIECE = 4 * 2 ** 20;
const WAITS_MS = [500, 1000, 2000, 4000, 8000];
const SHOWN_REMARKS = 200;

/** All files of what was dropped, folders opened, with the path that each had in them. */
async function filesOf(items) {
  const found = [];
  async function walk(entry, path) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ file, name: path + entry.name });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const one of some) await walk(one, `${path}${entry.name}/`);
    }
  }
  for (const entry of [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)) await walk(entry, "");
  return found;
}

/** Batches that are neither too many files nor too many bytes. */
function batchesOf(files) {
  const batches = [];
  let size = Infinity;
  for (const one of files) {
    if (size + one.file.size > BATCH_BYTES || batches.at(-1).length >= BATCH_FILES) {
      batches.push([]);
      size = 0;
    }
    batches.at(-1).push(one);
    size += one.file.size;
  }
  return batches;
}

const csvCell = (text) => `"${String(text).replace(/^[=+\-@\t]/, "'$&").replaceAll('"', '""')}"`;

function render({ model, el: place }) {
  const ask = asker(model), t = teller(model), number = figures(model), media = model.get("media");
  const root = el("div", { class: "cm upload stack", "data-lm-suppress-shortcuts": "true" });
  place.append(root);
  const state = { theme: null, work: false, labels: [], busy: false };

  const label = el("select", { name: "label", "aria-label": t("What they show") });
  const create = el("input", { type: "checkbox", name: "create", checked: true });
  const pick = (attributes) => el("input", { type: "file", multiple: true, hidden: true, ...attributes, onchange: (event) => { begin([...event.target.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }))); event.target.value = ""; } });
  const files = pick({ name: "files", accept: "image/*,.zip,.tif,.tiff,.bmp" }), folder = pick({ name: "folder", webkitdirectory: true });
  const zone = el("div", { class: "zone", role: "group", "aria-label": t("Drop pictures here") }, el("p", {}, el("strong", {}, t("Drop pictures, folders or ZIP archives here"))),
    el("p", { class: "row center" }, el("button", { type: "button", class: "main", "data-act": "files", onclick: () => files.click() }, t("Choose files")), el("button", { type: "button", "data-act": "folder", onclick: () => folder.click() }, t("Choose a folder"))), files, folder);
  const options = el("div", { class: "row" }, el("label", { class: "row" }, t("What they show"), label), el("label", { class: "row" }, create, t("Add labels that are missing")));
  const progress = el("progress", { max: 1, value: 0, hidden: true }), status = el("p", { role: "status", class: "soft" }), report = el("div", { class: "stack" });
  root.append(zone, options, progress, status, report);

  function allow() {
    for (const control of root.querySelectorAll("button, select, input")) control.disabled = !state.work || state.busy;
    zone.classList.toggle("off", !state.work);
    if (!state.work) status.textContent = t("Your role does not add pictures; ask an administrator.");
  }

  // --- the way of one batch --------------------------------------------------------------------------------------------
  const wish = () => ({ label: label.value.startsWith("=") ? label.value.slice(1) : "", from_folders: label.value === "folder", create_labels: create.checked });

  async function overPage(batch, chosen) {
    const form = new FormData();
    form.append("label", chosen.label);
    if (chosen.from_folders) form.append("label_from", "folder");
    form.append("create_labels", String(chosen.create_labels));
    for (const { file, name } of batch) form.append("files", file, name);
    const answer = await fetch(`/api/theme/${state.theme}/images/upload/`, { method: "POST", body: form });
    if (answer.status === 401) location.href = "/login/?next=" + encodeURIComponent(location.pathname);
    const found = await answer.json();
    if (!answer.ok) throw Object.assign(found, { final: answer.status < 500 && answer.status !== 429 });
    return found;
  }

  async function overWire(batch, chosen) {
    await ask("forget");
    for (const { file, name } of batch)
      for (let start = 0; start === 0 || start < file.size; start += PIECE) await ask("piece", { name, begins: start === 0 }, [await file.slice(start, start + PIECE).arrayBuffer()]);
    return ask("take", chosen);
  }

  async function send(batch, chosen) {
    for (let turn = 0; ; turn++) {
      try {
        return await (media ? overPage : overWire)(batch, chosen);
      } catch (error) {
        if (error.final || !media) throw error;
        root.dataset.waiting = String(turn + 1);
        status.textContent = t("The connection is lost; trying again …");
        await new Promise((resolve) => setTimeout(resolve, WAITS_MS[Math.min(turn, WAITS_MS.length - 1)]));
      }
    }
  }

  // --- all of them -----------------------------------------------------------------------------------------------------
  async function begin(found) {
    if (!found.length || state.busy || !state.work) return;
    state.busy = true;
    allow();
    report.replaceChildren();
    delete root.dataset.done;
    const chosen = wish(), total = found.reduce((sum, one) => sum + one.file.size, 0), started = performance.now(), waiting = batchesOf(found);
    const sum = { added: 0, there: 0, near: 0, remarks: [], files: 0, bytes: 0, failed: null };
    progress.hidden = false;
    progress.value = 0;
    const show = () => {
      const share = total ? sum.bytes / total : 1, seconds = (performance.now() - started) / 1000;
      progress.value = share;
      const left = share > 0.02 && share < 1 ? t("{seconds} s left", { seconds: number.format(Math.ceil((seconds / share) * (1 - share))) }) : "";
      status.textContent = `${t("{done} of {count} files", { done: number.format(sum.files), count: number.format(found.length) })} · ${number.format(Math.round(sum.bytes / 1e6))} / ${number.format(Math.round(total / 1e6))} MB · ${number.format(Math.round(sum.files / Math.max(seconds, 0.1)))}/s ${left}`;
    };
    const work = async () => {
      for (let batch; !sum.failed && (batch = waiting.shift()); ) {
        try {
          const came = await send(batch, chosen);
          sum.added += came.added;
          sum.there += came.already_there;
          sum.near += came.near_duplicates ?? 0;
          sum.remarks.push(...came.rejected.map((one) => [one.name ?? "", one.message]));
        } catch (error) {
          sum.failed = error;
        }
        sum.files += batch.length;
        sum.bytes += batch.reduce((size, one) => size + one.file.size, 0);
        show();
      }
    };
    show();
    await Promise.all(Array.from({ length: media ? AT_ONCE : 1 }, work));
    state.busy = false;
    progress.hidden = true;
    showReport(sum, found.length);
    allow();
    root.dataset.done = String(Number(root.dataset.count ?? 0) + 1);
    root.dataset.count = root.dataset.done;
    refresh();
  }

  function showReport(sum, count) {
    status.textContent = "";
    const tile = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, number.format(value)));
    const table = "file,reason\r\n" + sum.remarks.map((row) => row.map(csvCell).join(",")).join("\r\n");
    fill(report, sum.failed ? el("p", { class: "error", role: "alert" }, sum.failed.message ?? String(sum.failed), " ", t("What is there already stays; drop the same files again to go on.")) : null,
      el("dl", { class: "tiles" }, tile(t("added"), sum.added), tile(t("already there"), sum.there), tile(t("look like copies"), sum.near), tile(t("not taken"), sum.remarks.length)),
      sum.remarks.length ? el("details", { open: sum.remarks.length <= 20 }, el("summary", {}, t("What was not taken, and why")),
        el("p", {}, el("a", { class: "button", download: "report.csv", href: URL.createObjectURL(new Blob([table], { type: "text/csv" })) }, t("Download as CSV"))),
        el("ul", { class: "remarks" }, sum.remarks.slice(0, SHOWN_REMARKS).map(([, said]) => el("li", {}, said)))) : null);
  }

  // --- dropping --------------------------------------------------------------------------------------------------------
  for (const name of ["dragenter", "dragover"]) zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) zone.addEventListener(name, () => zone.classList.remove("over"));
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    const plain = [...event.dataTransfer.files].map((file) => ({ file, name: file.name }));
    const entries = await filesOf(event.dataTransfer.items);
    begin(entries.length ? entries : plain);
  });

  async function refresh() {
    const found = await ask("start");
    Object.assign(state, { theme: found.theme, work: found.may.work, labels: found.labels });
    const now = label.value;
    fill(label, el("option", { value: "" }, t("no label yet")), el("option", { value: "folder" }, t("the name of their folder")), found.labels.map((one) => el("option", { value: `=${one.name}` }, one.name)));
    if ([...label.options].some((option) => option.value === now)) label.value = now;
    allow();
    root.dataset.ready = "1";
  }
  refresh().catch((error) => (status.textContent = error.message));
}

export default { render };
