// The live view: follows /live while the page is seen, and shows what it tells.
import { Failure, events, request } from "./api.js";
import { MemoryBars, Sparkline } from "./charts.js";
import { NeuronMap } from "./map.js";
import { bytes, element, facts, plural, rate, whole } from "./words.js";

const longestWait = 15000; // milliseconds between two attempts to connect
const unitNames = { gpu: "GPU", cpu: "CPU" };

export class EngineView {
  constructor(root, { about, denied }) {
    this.root = root;
    this.heard = { about, denied };
    this.parts = Object.fromEntries([...root.querySelectorAll("[id]")].map((part) => [part.id, part]));
    this.map = new NeuronMap(this.parts.map, this.parts["map-readout"], this.parts.legend);
    this.spark = new Sparkline(this.parts.spark);
    this.memory = new MemoryBars(this.parts.memory);
    this.watching = null;
    document.addEventListener("visibilitychange", () => {
      if (!this.wanted) return;
      if (document.hidden) this.#leave();
      else this.watch();
    });
  }

  // Follow the server; again and again where it is lost, and not while the page is hidden.
  async watch() {
    this.wanted = true;
    this.#leave();
    const mine = new AbortController();
    this.watching = mine;
    for (let wait = 1000; !mine.signal.aborted; wait = Math.min(2 * wait, longestWait)) {
      let words = "not connected";
      try {
        const response = await request("/live", { signal: mine.signal });
        for await (const { event, data } of events(response)) {
          wait = 500;
          this.#take(event, JSON.parse(data));
        }
      } catch (error) {
        if (mine.signal.aborted) return;
        if (!(error instanceof Failure)) throw error;
        if (error.status === 401) {
          this.#state("lost", "needs an API key");
          return;
        }
        if (error.status === 429) words = "too many viewers";
      }
      if (mine.signal.aborted) return;
      this.#state("lost", `${words}; trying again`);
      await new Promise((resolve) => {
        setTimeout(resolve, wait);
      });
    }
  }

  #leave() {
    this.watching?.abort();
    this.watching = null;
  }

  #state(state, words) {
    const shown = this.parts.state;
    shown.dataset.state = state;
    if (shown.textContent !== words) shown.textContent = words;
    this.root.classList.toggle("lost", state === "lost");
  }

  #take(event, told) {
    if (event === "about") this.#about(told);
    else if (event === "now") this.#now(told);
    else if (event === "end") this.#state("lost", told.health === "failed" ? "the engine failed" : "the server stops");
  }

  #about(about) {
    this.about = about;
    this.heard.about(about);
    this.parts.neurons.hidden = about.neurons === null;
    this.parts["neurons-shape"].textContent = `${plural(about.layers, "layer")} of ${whole(about.rows)} rows`;
    this.map.open(about);
    this.memory.open(about);
    this.#state("live", "live");
  }

  #now(now) {
    const { about } = this;
    this.#state("live", now.requests.running ? `live, ${plural(now.requests.running, "request")}` : "live, idle");
    this.map.take(now.fired);
    this.spark.add(now.speed.decode);
    this.parts.speed.textContent = now.speed.decode ? rate(now.speed.decode) : "0";
    if (now.rows) this.rows = now.rows;
    if (now.bytes) this.bytes = now.bytes;
    const perToken = Object.entries(this.rows ?? {}).map(([unit, rows]) => [`Rows a token, ${unitNames[unit]}`, whole(rows)]);
    facts(this.parts["token-facts"], [
      ["Reading prompts", `${rate(now.speed.prompt)} tokens/s`],
      ...perToken,
      ["Bytes a token", this.bytes ? bytes(this.bytes) : "–"],
    ]);
    this.#slots(now.requests);
    const { running, waiting } = now.requests;
    this.parts.requests.textContent = `${running} of ${about.slots} run, ${waiting} of ${about.queue} wait`;
    const { pages } = about;
    facts(this.parts["load-facts"], [
      ["KV pages", `${whole(now.pages.used)} used, ${whole(now.pages.cached)} kept`],
      ["Prompt tokens known before", now.tokens.prompt ? `${whole(now.tokens.cached)} of ${whole(now.tokens.prompt)}` : "–"],
    ]);
    this.memory.take(now, pages);
  }

  #slots({ running, waiting }) {
    const kinds = Array.from({ length: this.about.slots }, (_, slot) => (slot < running ? "running" : ""));
    kinds.push(...Array.from({ length: Math.min(waiting, 24) }, () => "waiting"));
    const have = this.parts.slots.children;
    while (have.length > kinds.length) have[have.length - 1].remove();
    kinds.forEach((kind, at) => {
      if (!have[at]) this.parts.slots.append(element("i"));
      if (have[at].className !== kind) have[at].className = kind;
    });
  }
}
