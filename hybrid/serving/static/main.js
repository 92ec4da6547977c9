// Joins the parts of the page.
import { Failure, key, request } from "./api.js";
import { EngineView } from "./engine.js";
import { Parameters } from "./parameters.js";
import { Talk } from "./talk.js";
import { element, whole } from "./words.js";

const at = (id) => document.getElementById(id);
const prompt = at("prompt");
const composer = at("composer");

const parameters = new Parameters(at("parameters"), at("fields"), at("parameters-set"));
const view = new EngineView(at("engine"), {
  about: (about) => {
    at("model").replaceChildren(element("b", "", about.model), ` · ${about.mode} · ${about.format} · ${whole(about.context)} tokens`);
  },
  denied: (words) => askForKey(words),
});

let talk = null;
talk = new Talk({
  log: at("log"),
  parameters,
  told: (words) => {
    at("status").textContent = words;
  },
  denied: (words) => askForKey(words),
  changed: () => refresh(),
});
talk.offered = (text) => {
  prompt.value = text;
  prompt.focus();
};

function refresh() {
  if (!talk) return;
  at("send").hidden = talk.busy;
  at("stop").hidden = !talk.busy;
  at("send").disabled = !talk.model;
  at("clear").disabled = !talk.said[talk.kind].length;
}

function askForKey(words) {
  at("key-form").hidden = false;
  if (!talk.model) at("model").textContent = "";
  at("key-form").querySelector("label").textContent = words;
  at("key").focus();
}

let early = false; // something was to be sent before the server had named its model: it goes then

async function connect() {
  try {
    const models = await (await request("/v1/models")).json();
    talk.model = models.data[0].id;
    document.title = `${talk.model} · hybrid`;
    if (!at("model").querySelector("b")) at("model").replaceChildren(element("b", "", talk.model));
    at("key-form").hidden = true;
    view.watch();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.status === 401) {
      askForKey(error.message);
    } else {
      at("model").textContent = error.message;
      setTimeout(connect, 3000);
    }
  }
  refresh();
  if (talk.model && early) composer.requestSubmit();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  early = !talk.model;
  if (talk.busy || early || !prompt.value.trim()) return;
  if (talk.send(prompt.value)) {
    if (talk.kind === "chat") prompt.value = "";
    at("parameters").open = false;
  }
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  const wanted = talk.kind === "chat" ? !event.shiftKey : event.ctrlKey || event.metaKey;
  if (!wanted) return;
  event.preventDefault();
  composer.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && talk.busy) {
    talk.stop();
    prompt.focus();
  }
});
at("stop").addEventListener("click", () => {
  talk.stop();
  prompt.focus();
});
at("clear").addEventListener("click", () => {
  talk.clear();
  prompt.focus();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(at("key").value.trim());
  at("key").value = "";
  connect();
});
for (const choice of document.querySelectorAll('input[name="kind"]')) {
  choice.addEventListener("change", () => {
    const chat = choice.value === "chat";
    talk.use(choice.value);
    parameters.use(choice.value);
    composer.classList.toggle("text", !chat);
    at("send").textContent = chat ? "Send" : "Continue";
    prompt.placeholder = chat ? "Message the model" : "Begin a text";
    at("prompt-label").textContent = chat ? "Message" : "Text to continue";
    const parts = chat ? ["Enter", " sends, ", "Shift", " ", "Enter", " breaks the line"] : ["Ctrl", " ", "Enter", " continues the text"];
    at("keys").replaceChildren(...parts.map((part) => (/^[A-Z]/.test(part) ? element("kbd", "", part) : part)));
  });
}
refresh();
connect();
