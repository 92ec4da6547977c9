// What a person may set of a request: a field that is left empty is not sent, so that the model's own default holds.
import { button, element } from "./words.js";

const place = "hybrid.parameters";
const mostTokens = { chat: "until it ends", text: "256" }; // of a text the server's own default is 16
const number = (name, label, min, max, step, hint) => ({ name, label, kind: "number", min, max, step, hint });

const known = [
  { name: "system", label: "System prompt", kind: "text", wide: true, only: "chat", hint: "none" },
  number("temperature", "Temperature", 0, 2, 0.05, "default"),
  number("top_p", "Top p", 0, 1, 0.01, "default"),
  number("top_k", "Top k", 0, 1e6, 1, "default"),
  number("min_p", "Min p", 0, 1, 0.01, "default"),
  number("repetition_penalty", "Repetition penalty", 0.01, 10, 0.01, "default"),
  number("presence_penalty", "Presence penalty", -2, 2, 0.1, "0"),
  number("frequency_penalty", "Frequency penalty", -2, 2, 0.1, "0"),
  number("max_tokens", "Most tokens", 1, 1e9, 1, mostTokens.chat),
  number("seed", "Seed", -Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, 1, "random"),
  {
    name: "format", label: "Form of the answer", kind: "choice", half: true,
    choices: { "": "Any text", json_object: "A JSON object", json_schema: "JSON of a schema", regex: "A regular expression", grammar: "A grammar (Lark)" },
  },
  { name: "shape", label: "Schema, expression or grammar", kind: "text", wide: true, hint: '{"type": "object", …}' },
  { name: "stop", label: "Stop at, one text a line", kind: "text", wide: true, hint: "none" },
];

export class Parameters {
  constructor(details, fields, count) {
    this.fields = fields;
    this.count = count;
    this.inputs = new Map();
    this.kind = "chat";
    for (const field of known) fields.append(this.#made(field));
    const reset = button("Reset all", "quiet", () => this.reset());
    fields.append(element("div", "field foot-row", reset));
    fields.addEventListener("input", () => this.#changed());
    details.addEventListener("toggle", () => fields.querySelector("textarea, input")?.scrollIntoView({ block: "nearest" }));
    this.#restore();
    this.#changed();
  }

  // Fields for chats or for texts.
  use(kind) {
    this.kind = kind;
    this.inputs.get("max_tokens").placeholder = mostTokens[kind];
    this.#changed();
  }

  reset() {
    for (const input of this.inputs.values()) input.value = "";
    this.#changed();
    this.fields.querySelector("textarea, input").focus();
  }

  // The fields of a request, or the input that is wrong.
  read() {
    const body = {};
    for (const { name, kind, only } of known) {
      const input = this.inputs.get(name);
      if (only && only !== this.kind) continue;
      if (kind === "number" && !input.checkValidity()) return { wrong: input, why: input.validationMessage };
      if (kind === "number" && input.value !== "") body[name] = Number(input.value);
    }
    const system = this.kind === "chat" ? this.inputs.get("system").value.trim() : "";
    if (this.kind === "text") body.max_tokens ??= Number(mostTokens.text);
    const stop = this.inputs.get("stop").value.split("\n").filter((line) => line !== "");
    if (stop.length) body.stop = stop;
    const wrong = this.#form(body);
    return wrong ? { wrong: this.inputs.get("shape"), why: wrong } : { body, system };
  }

  // Adds what form the answer has; what is wrong with it, if anything.
  #form(body) {
    const format = this.inputs.get("format").value;
    const shape = this.inputs.get("shape").value.trim();
    if (format === "json_object") body.response_format = { type: "json_object" };
    if (format === "regex" || format === "grammar") {
      if (!shape) return "Say which.";
      body[format] = shape;
    }
    if (format !== "json_schema") return "";
    try {
      const schema = JSON.parse(shape);
      if (schema === null || typeof schema !== "object" || Array.isArray(schema)) return "A schema is a JSON object.";
      body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
      return "";
    } catch (error) {
      return `This is not JSON: ${error.message}`;
    }
  }

  #made({ name, label, kind, wide, half, hint, choices, min, max, step }) {
    const input = document.createElement({ number: "input", text: "textarea", choice: "select" }[kind]);
    if (kind === "number") Object.assign(input, { type: "number", min, max, step: "any", inputMode: "decimal" });
    if (kind === "number" && step === 1) input.step = 1;
    if (kind === "text") Object.assign(input, { rows: 1, spellcheck: name === "system" });
    if (choices) input.append(...Object.entries(choices).map(([value, text]) => new Option(text, value)));
    if (hint) input.placeholder = hint;
    input.id = `field-${name}`;
    input.name = name;
    const named = element("label", "", label);
    named.htmlFor = input.id;
    this.inputs.set(name, input);
    const field = element("div", `field${wide ? " wide" : ""}${half ? " half" : ""}`, named, input);
    field.dataset.field = name;
    return field;
  }

  #changed() {
    const shaped = ["json_schema", "regex", "grammar"].includes(this.inputs.get("format").value);
    let set = 0;
    for (const { name, only } of known) {
      const shown = name === "shape" ? shaped : !only || only === this.kind;
      this.fields.querySelector(`[data-field="${name}"]`).hidden = !shown;
      if (shown && name !== "shape" && this.inputs.get(name).value !== "") set += 1;
    }
    this.count.textContent = set ? `${set} set` : "the model's defaults";
    const values = [...this.inputs].map(([name, input]) => [name, input.value]).filter(([, value]) => value !== "");
    try {
      localStorage.setItem(place, JSON.stringify(Object.fromEntries(values)));
    } catch {
      // they hold until the page is left
    }
  }

  #restore() {
    try {
      const kept = JSON.parse(localStorage.getItem(place) ?? "{}");
      for (const [name, value] of Object.entries(kept)) {
        if (this.inputs.has(name) && typeof value === "string") this.inputs.get(name).value = value;
      }
    } catch {
      // nothing that was kept can be read
    }
  }
}
