// Conversations, and texts that are continued: what was said, what is asked for next, and one answer at a time.
import { generated } from "./api.js";
import { Answer, asked } from "./turns.js";
import { button, element } from "./words.js";

const empty = {
  chat: {
    title: "Ask the model something.",
    hint: "Each answer sees the whole conversation. On the right you see what the model computes for it.",
    examples: ["What is a feed-forward network?", "Write a function that reverses a list in Python."],
  },
  text: {
    title: "Begin a text; the model continues it.",
    hint: "Nothing is added to what you write: no template, no roles.",
    examples: ["def parse_args(", "class Stack:\n", "import os\n"],
  },
};

export class Talk {
  // told: says a thing to screen readers; denied: hears that the server wants an API key; changed: of what can be done
  constructor({ log, parameters, told, denied, changed }) {
    Object.assign(this, { log, parameters, told, denied, changed });
    this.kind = "chat";
    this.model = null;
    this.said = { chat: [], text: [] }; // { role, content, node }
    this.running = null;
    this.draw();
  }

  get busy() {
    return this.running !== null;
  }

  use(kind) {
    this.stop();
    this.kind = kind;
    this.draw();
  }

  draw() {
    const said = this.said[this.kind];
    this.log.replaceChildren(...(said.length ? said.map(({ node }) => node) : [this.#empty()]));
    this.#scroll(true);
    this.changed();
  }

  clear() {
    this.stop();
    this.said[this.kind] = [];
    this.draw();
    this.told("Cleared.");
  }

  stop() {
    this.running?.abort();
  }

  // Takes what a person wrote; false where a parameter is wrong.
  send(text) {
    if (this.busy) return false;
    const asking = this.#asking();
    if (!asking) return false;
    const said = this.said[this.kind];
    if (!said.length) this.log.replaceChildren();
    if (this.kind === "chat") {
      said.push({ role: "user", content: text, node: asked(text) });
      this.log.append(said.at(-1).node);
    }
    this.#answer(asking, this.kind === "chat" ? null : text);
    return true;
  }

  // The last answer anew.
  again(entry) {
    if (this.busy) return;
    const asking = this.#asking();
    if (!asking) return;
    const said = this.said[this.kind];
    const at = said.indexOf(entry);
    if (at < 0) return;
    for (const { node } of said.splice(at)) node.remove();
    if (said.length) said.at(-1).lost = false;
    this.#answer(asking, entry.given);
  }

  #asking() {
    const found = this.parameters.read();
    if (!found.wrong) return found;
    const { wrong, why } = found;
    wrong.closest("details").open = true;
    wrong.setAttribute("aria-invalid", "true");
    const told = element("p", "wrong", why);
    told.id = `${wrong.id}-wrong`;
    wrong.after(told);
    wrong.setAttribute("aria-describedby", told.id);
    wrong.addEventListener("input", () => {
      told.remove();
      wrong.removeAttribute("aria-invalid");
      wrong.removeAttribute("aria-describedby");
    }, { once: true });
    wrong.focus();
    return null;
  }

  async #answer({ body, system }, given) {
    const { kind } = this;
    const said = this.said[kind];
    const messages = said.filter(({ lost }) => !lost).map(({ role, content }) => ({ role, content }));
    if (system) messages.unshift({ role: "system", content: system });
    const request = { model: this.model, ...body, ...(kind === "chat" ? { messages } : { prompt: given }) };
    const entry = { role: "assistant", content: "", given };
    const answer = new Answer(this.model, { given, again: () => this.again(entry) });
    entry.node = answer.node;
    said.push(entry);
    for (const old of this.log.querySelectorAll(".regenerate")) old.hidden = kind === "chat";
    this.log.append(answer.node);
    this.#scroll(true);
    answer.grown = () => this.#scroll(false);
    const running = new AbortController();
    this.running = running;
    this.changed();
    this.told("The answer begins.");
    const ending = {};
    try {
      for await (const piece of generated(kind, request, running.signal)) {
        if (piece.text) answer.add(piece.text);
        else Object.assign(ending, piece);
      }
      this.told("The answer is complete.");
    } catch (error) {
      if (running.signal.aborted) {
        ending.stopped = true;
        this.told("Stopped.");
      } else {
        ending.failure = error.message;
        if (error.status === 401) this.denied(error.message);
      }
    }
    entry.content = answer.text;
    // What was not answered is no part of the conversation; templates want turns that alternate.
    entry.lost = answer.text === "" && (ending.failure !== undefined || ending.stopped === true);
    const before = said[said.indexOf(entry) - 1];
    if (entry.lost && before) before.lost = true;
    answer.end(ending);
    if (this.running === running) this.running = null;
    this.changed();
  }

  #empty() {
    const { title, hint, examples } = empty[this.kind];
    const offered = examples.map((text) => button(text.trim(), "", () => this.offered?.(text)));
    return element("div", "empty", element("p", "", title), element("p", "", hint), element("div", "examples", ...offered));
  }

  // To the end, unless somebody reads further up.
  #scroll(always) {
    const box = this.log.scrollHeight > this.log.clientHeight + 1 ? this.log : document.scrollingElement;
    const below = box.scrollHeight - box.scrollTop - box.clientHeight;
    if (box === this.log ? always || below < 120 : this.busy && always) box.scrollTop = box.scrollHeight;
  }
}
