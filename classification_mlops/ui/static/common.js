// What the programs of all screens begin with.

/** Asks the Python half of a screen: `await ask("label", { ids, label })`. Answers have the buffers as `buffers`. */
function asker(model) {
  const open = new Map();
  let last = 0;
  model.on("msg:custom", (content, buffers) => {
    const asked = open.get(content.number);
    if (!asked) return;
    open.delete(content.number);
    if (content.error) asked.reject(content.error);
    else asked.resolve(buffers?.length ? Object.assign(content.answer, { buffers }) : content.answer);
  });
  const send = (number) => model.send({ number, ask: open.get(number).name, given: open.get(number).given }, undefined, open.get(number).buffers);
  model.on("connected", () => [...open.keys()].forEach(send)); // A server that was started again has not heard these
  return (name, given = {}, buffers = []) =>
    new Promise((resolve, reject) => {
      open.set(++last, { name, given, buffers, resolve, reject });
      send(last);
    });
}

/** A name that nothing else has: what is asked again with it, because the answer was lost, is done once. */
const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-"); // randomUUID needs https

/** The sentence in the language of whoever looks; `{name}` stands for a value. */
function teller(model) {
  const texts = model.get("texts");
  return (text, values = {}) => (texts[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** What the splits are called. */
const splitNames = (t) => ({ train: t("train"), valid: t("valid"), test: t("test"), unsplit: t("unsplit") });

/** An element: `el("button", { class: "main", onclick }, "Save")`. Text is text, never HTML. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value") made.value = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A setting such as `trainer.max_epochs=3`, whose line ends before its value rather than within. */
const setting = (text) => text.split(/(?<==)/).flatMap((part, n) => (n ? [el("wbr"), part] : [part]));

/** New content for an element; what is null or false is left out. */
function fill(made, ...children) {
  made.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== null) made.setAttribute(name, value);
  made.append(...children.flat(Infinity));
  return made;
}

/** A number as people of that language write it. */
const figures = (model) => new Intl.NumberFormat(model.get("language"));
