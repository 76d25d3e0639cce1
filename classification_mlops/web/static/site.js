// Forms speak to the REST API; what it refuses is said beside the field that is wrong.
const MANY = 20; // Remarks to list

async function ask(address, method, body) {
  const json = body !== undefined && !(body instanceof FormData);
  const options = { method, body: json ? JSON.stringify(body) : body, headers: json ? { "Content-Type": "application/json" } : {} };
  const answer = await fetch(address, options);
  if (answer.status === 401) location.href = "/login/?next=" + encodeURIComponent(location.pathname);
  const data = await answer.json();
  if (!answer.ok) throw data;
  return data;
}

function bodyOf(form) {
  const body = {};
  for (const field of form.querySelectorAll("[name]"))
    body[field.name] = "lines" in field.dataset ? field.value.split("\n").map((line) => line.trim()).filter(Boolean) : field.value;
  return body;
}

async function tried(form, work) {
  const error = form.querySelector(".error"), buttons = form.querySelectorAll("button");
  error.hidden = true;
  buttons.forEach((button) => (button.disabled = true));
  try {
    await work();
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
    form.querySelector(`[name="${CSS.escape(problem.field?.split(".")[0] ?? "")}"]`)?.focus();
  } finally {
    buttons.forEach((button) => (button.disabled = false));
  }
}

function report(form, found) {
  const done = form.querySelector(".done"), list = form.querySelector(".report");
  const numbers = { "#added": found.added, "#there": found.already_there, "#rejected": found.rejected.length };
  done.textContent = done.dataset.text.replace(/#\w+/g, (name) => numbers[name]);
  done.hidden = false;
  list.replaceChildren(...found.rejected.slice(0, MANY).map((one) => Object.assign(document.createElement("li"), { textContent: one.message })));
}

for (const form of document.querySelectorAll("form[data-api]"))
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    tried(form, async () => {
      const data = await ask(form.dataset.api, form.dataset.method, bodyOf(form));
      if (form.dataset.then) location.href = form.dataset.then.replace("{id}", data.id);
      else location.reload();
    });
  });

for (const form of document.querySelectorAll("form[data-upload]"))
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    tried(form, async () => report(form, await ask(form.dataset.upload, "POST", new FormData(form))));
  });

for (const button of document.querySelectorAll("[data-delete]"))
  button.addEventListener("click", () => {
    if (!confirm(button.dataset.ask)) return;
    tried(button.form, async () => {
      await ask(button.dataset.delete, "DELETE");
      location.reload();
    });
  });
