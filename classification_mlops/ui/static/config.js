// Forms for params.yaml and auguments.yaml, made from their schema; the same objects judge them that judge the files.
const CHECK_AFTER_MS = 250, PREVIEW_AFTER_MS = 700;
const OFTEN = ["HorizontalFlip", "VerticalFlip", "Rotate", "Affine", "RandomBrightnessContrast", "GaussNoise", "GaussianBlur", "RandomResizedCrop", "CoarseDropout", "ColorJitter"];
const BASIC = ["model.architecture", "model.weights", "image.size_px", "image.channels", "trainer.max_epochs", "data.batch_size", "optimizer.learning_rate", "early_stopping.patience", "split.train", "split.valid", "split.test", "seed"];
const LISTS = ["preprocess"];

const clone = (value) => JSON.parse(JSON.stringify(value));
const at = (data, name) => name.split(".").reduce((found, part) => found?.[part], data);
function put(data, name, value) {
  const parts = name.split("."), last = parts.pop();
  parts.reduce((found, part) => (found[part] ??= {}), data)[last] = value;
}
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** All fields of the schema, by dotted name. */
function fieldsOf(schema) {
  const found = new Map(), target = (node) => (node.$ref ? { ...schema.$defs[node.$ref.split("/").at(-1)], ...node } : node);
  for (const [name, node] of Object.entries(schema.properties)) {
    const section = target(node.anyOf?.find((one) => one.$ref) ?? node);
    if (LISTS.includes(name)) continue;
    if (!section.properties) found.set(name, node);
    else for (const [inner, field] of Object.entries(section.properties)) found.set(`${name}.${inner}`, { ...field, section: node.description ?? section.description, optional: Boolean(node.anyOf) });
  }
  return found;
}

/** What somebody typed, as YAML would read it. */
function parsed(text) {
  const word = text.trim();
  if (["null", "", "~"].includes(word)) return null;
  if (["true", "false"].includes(word)) return word === "true";
  if (/^[[{"]/.test(word)) try { return JSON.parse(word); } catch { return word; }
  return /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(word) ? Number(word) : word;
}
const written = (value) => (value === null || value === undefined ? "null" : typeof value === "object" ? JSON.stringify(value) : String(value));

function render({ model, el: place }) {
  const ask = asker(model), t = teller(model);
  const state = { params: {}, augmentations: [], off: new WeakSet(), usual: {}, fields: new Map(), problems: {}, changes: [], version: 0, registry: null, draw: 0, skip: 0, may: {}, tab: "basic" };
  const root = el("div", { class: "cm config", "data-lm-suppress-shortcuts": "true" });
  const message = el("p", { class: "error", role: "alert", hidden: true }), done = el("p", { class: "done", role: "status", hidden: true });
  const tabs = el("div", { class: "tabs", role: "tablist" }), panel = el("div", { class: "panel", role: "tabpanel" }), bar = el("div", { class: "row save" });
  root.append(message, done, tabs, panel, bar);
  place.append(root);

  const say = (error, good) => {
    message.textContent = error?.message ?? "";
    message.hidden = !message.textContent;
    done.textContent = good ?? "";
    done.hidden = !good;
  };
  const active = (steps) => steps.filter((step) => !state.off.has(step));
  const draft = () => ({ params: { ...state.params, preprocess: active(state.params.preprocess ?? []) }, augmentations: active(state.augmentations) });

  // --- judging ---------------------------------------------------------------------------------------------------------
  let waiting = null, turn = 0;
  function touched(now = false) {
    clearTimeout(waiting);
    waiting = setTimeout(check, now ? 0 : CHECK_AFTER_MS);
    if (["preprocess", "augment"].includes(state.tab)) previewSoon();
  }
  async function check() {
    const mine = ++turn;
    try {
      const found = await ask("check", draft());
      if (mine !== turn) return;
      Object.assign(state, found);
      showProblems();
      showBar();
      root.dataset.checked = mine;
    } catch (error) {
      say(error);
    }
  }
  function showProblems() {
    const known = new Set();
    for (const row of panel.querySelectorAll("[data-field]")) {
      const name = row.dataset.field, problem = Object.entries(state.problems).find(([field]) => field === name || field.startsWith(name + "."));
      const place = row.querySelector(".problem");
      place.textContent = problem?.[1] ?? "";
      row.classList.toggle("wrong", Boolean(problem));
      row.querySelector(".control")?.setAttribute("aria-invalid", String(Boolean(problem)));
      if (problem) known.add(problem[0]);
    }
    const elsewhere = Object.entries(state.problems).filter(([name]) => !known.has(name));
    message.textContent = elsewhere.map(([name, problem]) => `${name}: ${problem}`).join(" · ");
    message.hidden = !elsewhere.length;
  }
  function showBar() {
    const wrong = Object.keys(state.problems).length;
    fill(bar, el("button", { type: "button", class: "main", "data-act": "save", disabled: !state.may.work || wrong > 0 || !state.changes.length, onclick: save }, t("Save")),
      el("button", { type: "button", disabled: !state.changes.length && !wrong, onclick: () => adopt(state.saved) }, t("Discard")),
      el("span", { class: "soft", role: "status", "data-changes": state.changes.length }, wrong ? t("to be put right: {count}", { count: wrong }) : state.changes.length ? t("not saved yet: {count}", { count: state.changes.length }) : t("Everything is saved.")),
      state.changes.length ? el("details", { class: "changes" }, el("summary", {}, t("Show the changes")), changeTable(state.changes)) : null);
  }
  const changeTable = (changes) => el("table", {}, el("tr", {}, el("th", {}, t("Setting")), el("th", {}, t("old value")), el("th", {}, t("new value"))),
    changes.map((one) => el("tr", {}, el("td", {}, el("code", {}, one.name)), el("td", {}, written(one.old)), el("td", {}, written(one.new)))));

  async function save() {
    try {
      const found = await ask("save", { ...draft(), based_on: state.version });
      state.version = found.version;
      state.history = found.history;
      state.saved = { version: found.version, ...clone(draft()) };
      await check();
      say(null, t("Saved as version {version}. The next training of this theme uses it.", { version: found.version }));
      root.dataset.saved = found.version;
    } catch (error) {
      say(error);
    }
  }
  function adopt(settings) {
    state.params = clone(settings.params);
    state.augmentations = clone(settings.augmentations);
    state.off = new WeakSet();
    show();
    touched(true);
  }

  // --- fields ----------------------------------------------------------------------------------------------------------
  function controlOf(name, field) {
    const value = at(state.params, name), disabled = !state.may.work, set = (given) => { put(state.params, name, given); row.classList.toggle("other", !same(given, at(state.usual, name))); touched(); };
    let control;
    if (field.enum) control = el("select", { class: "control", disabled, onchange: (event) => set(parsed(event.target.value)) }, field.enum.map((one) => el("option", { value: written(one), selected: same(one, value) }, written(one))));
    else if (field.type === "boolean") control = el("input", { class: "control", type: "checkbox", disabled, checked: value === true, onchange: (event) => set(event.target.checked) });
    else if (field.type === "integer" || field.type === "number")
      control = el("input", { class: "control", type: "number", step: "any", min: field.minimum ?? field.exclusiveMinimum, max: field.maximum ?? field.exclusiveMaximum, disabled, value: value ?? "", oninput: (event) => set(event.target.value === "" ? null : Number(event.target.value)) });
    else if (field.type === "array") control = el("textarea", { class: "control", rows: 3, disabled, value: (value ?? []).join("\n"), oninput: (event) => set(event.target.value.split("\n").map((one) => one.trim()).filter(Boolean)) });
    else control = el("input", { class: "control", disabled, value: field.type === "string" ? value ?? "" : written(value), oninput: (event) => set(field.type === "string" ? event.target.value : parsed(event.target.value)) });
    const unit = field.unit ? el("span", { class: "soft" }, field.unit) : null, usual = at(state.usual, name);
    const reset = el("button", { type: "button", class: "plain reset", title: t("Back to the usual value: {value}", { value: written(usual) }), disabled, onclick: () => { put(state.params, name, clone(usual ?? null)); show(); touched(true); } }, "↺");
    const low = field.minimum ?? field.exclusiveMinimum, high = field.maximum ?? field.exclusiveMaximum;
    const range = low !== undefined || high !== undefined ? `${low ?? ""} – ${high ?? ""}` : "";
    const row = el("label", { class: "field", "data-field": name }, el("span", { class: "title" }, el("strong", {}, field.description ?? name), el("code", { class: "soft" }, name)), el("span", { class: "row entry" }, control, unit, reset), range ? el("span", { class: "soft hint" }, range) : null, el("span", { class: "problem", role: "alert" }));
    row.classList.toggle("other", !same(value, usual));
    return row;
  }

  function sections(names) {
    const groups = new Map();
    for (const name of names) {
      const key = name.includes(".") ? name.split(".")[0] : "";
      groups.set(key, [...(groups.get(key) ?? []), name]);
    }
    return [...groups].map(([key, inside]) => {
      const first = state.fields.get(inside[0]), optional = first.optional, on = !optional || at(state.params, key);
      return el("section", { class: "card stack" }, el("h2", {}, first.section ?? t("General")),
        optional ? el("label", { class: "row" }, el("input", { type: "checkbox", checked: Boolean(on), disabled: !state.may.work, "data-optional": key, onchange: (event) => { state.params[key] = event.target.checked ? firstValues(key) : null; show(); touched(true); } }), t("Use this part")) : null,
        on ? el("div", { class: "fields" }, inside.map((name) => controlOf(name, state.fields.get(name)))) : null);
    });
  }
  const firstValues = (key) => Object.fromEntries([...state.fields].filter(([name]) => name.startsWith(key + ".")).map(([name, field]) => [name.split(".")[1], field.default ?? []]));

  /** How long this theme would train with a network: measured when somebody asks. */
  function speedOf(name) {
    const place = el("span", { "data-seconds": "" }), button = el("button", { type: "button", disabled: !state.may.work, title: t("Tries a few steps on this machine, with the saved settings"), onclick: async () => {
      button.disabled = true;
      place.textContent = t("trying …");
      try {
        const seconds = await ask("seconds", { architecture: name });
        place.textContent = seconds === null ? t("unknown") : t("about {minutes} min", { minutes: Math.max(1, Math.round(seconds / 60)) });
        place.dataset.seconds = seconds ?? "";
        button.hidden = true;
      } catch (error) {
        place.textContent = error.message;
        button.disabled = false;
      }
    } }, t("How long?"));
    return [button, place];
  }

  function basicPanel() {
    const found = el("div", { class: "networks" }), words = el("input", { type: "search", placeholder: t("resnet, efficientnet, convnext …"), "aria-label": t("Find a network") });
    const look = async () => {
      fill(found, el("p", { class: "soft" }, t("Looking …")));
      try {
        const rows = await ask("architectures", { words: words.value });
        fill(found, el("table", {}, el("tr", {}, el("th", {}, t("Network")), el("th", {}, t("Million weights")), el("th", {}, t("Usual side, px")), el("th", {}, t("Training here")), el("th", {}, "")),
          rows.map((row) => el("tr", {}, el("td", {}, row.name), el("td", {}, written(row.parameters_m ?? "–")), el("td", {}, written(row.input_px ?? "–")), el("td", {}, speedOf(row.name)), el("td", {}, el("button", { type: "button", disabled: !state.may.work, onclick: () => { put(state.params, "model.architecture", row.name); show(); touched(true); } }, t("Take")))))));
      } catch (error) {
        fill(found, el("p", { class: "error" }, error.message));
      }
    };
    const finder = el("details", { class: "card" }, el("summary", {}, t("Find a network")), el("form", { class: "row", onsubmit: (event) => { event.preventDefault(); look(); } }, words, el("button", {}, t("Find"))), el("p", { class: "soft" }, t("More weights see more and are slower; small networks are enough for small pictures.")), found);
    return [el("section", { class: "card stack" }, el("h2", {}, t("What matters most")), el("div", { class: "fields" }, BASIC.filter((name) => state.fields.has(name)).map((name) => controlOf(name, state.fields.get(name))))), finder];
  }

  // --- steps -----------------------------------------------------------------------------------------------------------
  function stepEditor(steps, key, known, often = []) {
    const list = el("ol", { class: "steps" });
    const change = () => { showSteps(); touched(true); };
    const argument = (step, one) => {
      const value = step[one.name] === undefined ? one.default : step[one.name], type = typeof value === typeof one.default ? typeof value : "other"; // Where a number is usual, a range may be given
      const set = (given) => { step[one.name] = given; touched(); };
      const control = type === "boolean" ? el("input", { type: "checkbox", checked: Boolean(value), onchange: (event) => set(event.target.checked) })
        : type === "number" ? el("input", { type: "number", step: "any", min: one.low, max: one.high, value: value ?? "", oninput: (event) => event.target.value !== "" && set(Number(event.target.value)) })
        : el("input", { value: written(value), oninput: (event) => set(parsed(event.target.value)) });
      control.disabled = !state.may.work;
      return el("label", { class: "argument" }, el("span", { class: "soft" }, one.name), control);
    };
    function showSteps() {
      fill(list, steps.map((step, index) => {
        const move = (by) => () => { const [taken] = steps.splice(index, 1); steps.splice(index + by, 0, taken); change(); };
        const button = (text, title, act, disabled) => el("button", { type: "button", class: "small", title, disabled: disabled || !state.may.work, onclick: act }, text);
        const arguments_ = known[step[key]] ?? Object.keys(step).filter((name) => name !== key).map((name) => ({ name, default: step[name] }));
        const isOff = state.off.has(step);
        return el("li", { class: `card step ${isOff ? "off" : ""}`, "data-step": step[key], "data-field": key === "step" ? `preprocess.${index}` : `auguments.${index}` },
          el("div", { class: "row" }, el("label", { class: "row" }, el("input", { type: "checkbox", checked: !isOff, disabled: !state.may.work, title: t("Use this step"), onchange: (event) => { event.target.checked ? state.off.delete(step) : state.off.add(step); change(); } }), el("strong", {}, step[key])),
            el("span", { class: "row push" }, button("↑", t("Earlier"), move(-1), index === 0), button("↓", t("Later"), move(1), index === steps.length - 1), button("✕", t("Remove"), () => { steps.splice(index, 1); change(); }))),
          el("div", { class: "arguments" }, arguments_.map((one) => argument(step, one))), el("span", { class: "problem", role: "alert" }));
      }));
      if (!steps.length) fill(list, el("li", { class: "empty" }, key === "step" ? t("No steps: pictures are only scaled to the side of the network.") : t("No augmentation: the network sees each picture as it is, in every epoch.")));
      showProblems();
    }
    const names = Object.keys(known), group = (label, some) => (some.length ? el("optgroup", { label }, some.map((name) => el("option", { value: name }, name))) : null);
    const first = often.filter((name) => names.includes(name)), add = el("select", { disabled: !state.may.work, "aria-label": t("Add a step"), onchange: (event) => {
      const name = event.target.value;
      if (!name) return;
      steps.push({ [key]: name, ...Object.fromEntries((known[name] ?? []).filter((one) => one.needed).map((one) => [one.name, one.default])) });
      event.target.value = "";
      change();
    } }, el("option", { value: "" }, t("Add a step …")), group(t("often used"), first), group(t("all"), names.filter((name) => !first.includes(name))));
    showSteps();
    return [list, add];
  }

  const stage = el("div", { class: "stage" });
  let previewing = null, previewTurn = 0;
  const previewSoon = () => { clearTimeout(previewing); previewing = setTimeout(showPreview, PREVIEW_AFTER_MS); };
  async function showPreview() {
    const mine = ++previewTurn;
    stage.dataset.state = "busy";
    try {
      const rows = await ask("preview", { ...draft(), draw: state.draw, skip: state.skip });
      if (mine !== previewTurn) return;
      const image = (data, title) => el("figure", {}, el("img", { src: `data:image/png;base64,${data}`, alt: title }), el("figcaption", { class: "soft" }, title));
      fill(stage, rows.length ? rows.map((row) => el("div", { class: "draws" }, image(row.before, t("original")), image(row.after, t("preprocessed")), row.drawn.map((one, number) => image(one, t("draw {number}", { number: number + 1 }))))) : el("p", { class: "empty" }, t("This theme has no pictures yet: add some to see what the steps do.")));
      stage.dataset.state = "shown";
    } catch (error) {
      if (mine !== previewTurn) return;
      fill(stage, el("p", { class: "error" }, error.message));
      stage.dataset.state = "failed";
    }
  }
  function stepsPanel(kind) {
    const body = el("div", { class: "two" }, el("div", { class: "stack" }, el("p", { class: "soft" }, t("Looking for the steps that there are …"))), el("section", { class: "card stack" }, el("div", { class: "row" }, el("h2", {}, t("On pictures of this theme")), el("button", { type: "button", class: "push", onclick: () => { state.draw += 1; showPreview(); } }, t("Another draw")), el("button", { type: "button", onclick: () => { state.skip += 3; showPreview(); } }, t("Other pictures"))), stage));
    (async () => {
      try {
        state.registry ??= await ask("registry");
        const editor = kind === "preprocess" ? stepEditor(state.params.preprocess, "step", state.registry.steps) : stepEditor(state.augmentations, "transform", state.registry.transforms, OFTEN);
        fill(body.children[0], el("p", { class: "soft" }, kind === "preprocess" ? t("Applied to every picture, in training and by the served model alike, in this order.") : t("Applied to the train pictures only, anew in every epoch.")), editor);
        showPreview();
      } catch (error) {
        fill(body.children[0], el("p", { class: "error" }, error.message));
      }
    })();
    return [body];
  }

  // --- history and files -----------------------------------------------------------------------------------------------
  function historyPanel() {
    const shown = el("div", { class: "stack" }), when = (text) => (text ? new Date(text).toLocaleString(model.get("language")) : "");
    const open = async (number) => {
      const found = await ask("version", { number }).catch(say);
      if (!found) return;
      const download = (name) => el("a", { class: "button", download: name, href: URL.createObjectURL(new Blob([found.files[name]], { type: "text/yaml" })) }, name);
      fill(shown, el("section", { class: "card stack", "data-version": number }, el("div", { class: "row" }, el("h2", {}, number ? t("Version {version}", { version: number }) : t("The files of the workspace")), el("span", { class: "row push" }, download("params.yaml"), download("auguments.yaml"),
        el("button", { type: "button", class: "main", disabled: !state.may.work, onclick: () => { adopt(found.settings); say(null, t("Version {version} is in the forms now; save it to use it.", { version: number })); } }, t("Take this version")))),
        found.changes.length ? [el("p", { class: "soft" }, t("Changed since then:")), changeTable(found.changes)] : el("p", { class: "soft" }, t("Nothing has changed since."))));
    };
    const file = el("input", { type: "file", accept: ".yaml,.yml", onchange: async (event) => {
      const [chosen] = event.target.files;
      if (!chosen) return;
      try {
        const found = await ask("read", { text: await chosen.text() });
        adopt({ params: found.params ?? state.params, augmentations: found.augmentations ?? state.augmentations });
        say(null, t("{name} is in the forms now; save it to use it.", { name: chosen.name }));
      } catch (error) {
        say(error);
      }
      event.target.value = "";
    } });
    const rows = [...state.history, { version: 0, actor: "", saved_at: "" }];
    return [el("section", { class: "card stack" }, el("h2", {}, t("Versions")), el("table", {}, rows.map((one) => el("tr", {}, el("td", {}, one.version ? t("Version {version}", { version: one.version }) : t("The files of the workspace")), el("td", {}, one.actor), el("td", { class: "soft" }, when(one.saved_at)), el("td", {}, el("button", { type: "button", "data-open": one.version, onclick: () => open(one.version) }, t("Look"))))))),
      shown, el("section", { class: "card stack" }, el("h2", {}, t("Read a file")), el("p", { class: "soft" }, t("A params.yaml or auguments.yaml from elsewhere fills the forms; nothing is saved until you save it.")), el("label", { class: "row" }, file))];
  }

  const TABS = { basic: [t("Basics"), basicPanel], all: [t("All settings"), () => sections([...state.fields.keys()])], preprocess: [t("Preprocessing"), () => stepsPanel("preprocess")], augment: [t("Augmentation"), () => stepsPanel("augment")], history: [t("Versions and files"), historyPanel] };
  function show() {
    fill(tabs, Object.entries(TABS).map(([name, [text]]) => el("button", { type: "button", role: "tab", "data-tab": name, "aria-selected": String(name === state.tab), onclick: () => { state.tab = name; say(); show(); } }, text)));
    fill(panel, TABS[state.tab][1]());
    panel.dataset.shown = state.tab;
    showProblems();
    showBar();
  }

  (async () => {
    try {
      const found = await ask("start");
      Object.assign(state, { usual: found.usual, fields: fieldsOf(found.schema), version: found.now.version, saved: found.now, history: found.history, may: found.may });
      state.params = clone(found.now.params);
      state.augmentations = clone(found.now.augmentations);
      show();
      root.dataset.ready = "1";
    } catch (error) {
      say(error);
    }
  })();
}

export default { render };
