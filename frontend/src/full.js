// The official front end of ipywidgets over one WebSocket: what a page's slots show, kept through restarts of the server.
import "./anywidget.js";
import "anywidget";
import * as base from "@jupyter-widgets/base";
import * as controls from "@jupyter-widgets/controls";
import { ManagerBase } from "@jupyter-widgets/base-manager";
import { Widget } from "@lumino/widgets";
import "@lumino/widgets/style/index.css";
import "@jupyter-widgets/base/css/index.css";
import "@jupyter-widgets/controls/css/widgets.built.css";
import { pack, unpack } from "./frames.js";

const MODULES = { "@jupyter-widgets/base": base, "@jupyter-widgets/controls": controls, anywidget: globalThis.__anywidget };
const FIRST_WAIT_MS = 250, LONGEST_WAIT_MS = 5000;
const SIGN_IN = 4401, FOR_GOOD = [4403, 4404];

class Comm {
  target_name = "jupyter.widget";

  constructor(manager, id) {
    this.manager = manager;
    this.comm_id = id;
  }

  send(data, callbacks, metadata, buffers) {
    if (data.method === "update" && !buffers?.length) // What somebody has entered: said again after a restart
      this.manager.entered[this.comm_id] = { ...this.manager.entered[this.comm_id], ...data.state };
    this.manager.say({ id: this.comm_id, data }, buffers);
    setTimeout(() => callbacks?.iopub?.status?.({ content: { execution_state: "idle" } }));
    return this.comm_id;
  }

  open() {}

  close() {
    this.closed?.({});
    return "";
  }

  on_msg(heard) {
    this.heard = heard;
  }

  on_close(closed) {
    this.closed = closed;
  }
}

class Manager extends ManagerBase {
  constructor(address) {
    super();
    Object.assign(this, { address, waiting: [], entered: {}, comms: new Map(), mounted: false, wait: FIRST_WAIT_MS });
    this.connect();
  }

  async loadClass(name, module) {
    const found = MODULES[module]?.[name];
    if (!found) throw new Error(`this page knows no ${module}.${name}`);
    return found;
  }

  async _get_comm_info() {
    return {};
  }

  async _create_comm(target, id) {
    return new Comm(this, id);
  }

  say(message, buffers) {
    if (this.live) this.socket.send(pack(message, buffers));
    else this.waiting.push([message, buffers]);
  }

  connect() {
    this.socket = new WebSocket(this.address);
    this.socket.binaryType = "arraybuffer";
    let turn = Promise.resolve();
    this.socket.onmessage = (event) => {
      const frame = unpack(event.data);
      turn = turn.then(() => this.hear(...frame)).catch(console.error);
    };
    this.socket.onclose = (event) => this.lost(event.code);
  }

  lost(code) {
    this.live = false;
    document.documentElement.dataset.connection = "lost";
    if (code === SIGN_IN) location.href = "/login/?next=" + encodeURIComponent(location.pathname + location.search);
    if (code === SIGN_IN || FOR_GOOD.includes(code)) return;
    setTimeout(() => this.connect(), this.wait * (0.5 + Math.random() / 2));
    this.wait = Math.min(this.wait * 1.7, LONGEST_WAIT_MS);
  }

  async hear(message, buffers) {
    if (message.kind === "comm_open") await this.opened(message, buffers);
    else if (message.kind === "mount") await this.mount(message.roots);
    else if (message.kind === "comm_close") this.comms.get(message.id)?.closed?.({});
    else if (message.kind === "comm_msg") {
      await this.get_model(message.id);
      const content = { comm_id: message.id, data: message.data };
      this.comms.get(message.id)?.heard?.({ content, buffers, metadata: {}, parent_header: {}, header: {} });
    }
  }

  async opened({ id, data }, buffers) {
    const state = data.state;
    for (const name of ["_esm", "_css"]) if (state[name]?.startsWith?.("/")) state[name] = location.origin + state[name];
    if (!this.has_model(id)) {
      const comm = new Comm(this, id);
      this.comms.set(id, comm);
      await this.handle_comm_open(comm, { content: { data }, buffers, metadata: { version: "2.1.0" } });
      return;
    }
    const model = await this.get_model(id); // Connected again: the same view, with what is new
    base.put_buffers(state, data.buffer_paths ?? [], buffers);
    for (const name of Object.keys(state)) if (name.startsWith("_") || name in (this.entered[id] ?? {})) delete state[name];
    model.set_state(await model.constructor._deserialize_state(state, this));
  }

  async mount(roots) {
    if (!this.mounted)
      for (const [slot, id] of Object.entries(roots)) {
        const place = document.querySelector(`[data-widget="${CSS.escape(slot)}"]`);
        const view = await this.create_view(await this.get_model(id));
        place.replaceChildren();
        Widget.attach(view.luminoWidget, place);
      }
    const waiting = this.waiting.splice(0);
    this.live = true;
    this.wait = FIRST_WAIT_MS;
    document.documentElement.dataset.connection = "live";
    if (this.mounted) for (const [id, state] of Object.entries(this.entered)) this.say({ id, data: { method: "update", state, buffer_paths: [] } });
    if (!this.mounted) for (const one of waiting) this.say(...one); // Later, screens ask again what has no answer
    if (this.mounted) for (const id of this.comms.keys()) (await this.get_model(id)).trigger("connected");
    this.mounted = true;
  }
}

const page = document.body.dataset.socket;
if (page) {
  const address = new URL(page, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  address.searchParams.set("p", crypto.getRandomValues(new Uint32Array(4)).join("-")); // randomUUID needs https
  globalThis.widgets = new Manager(address.href);
}
