// A line of the last minute, and bars of memory.
import { bytes, element } from "./words.js";

const looks = 120; // at two a second, a minute
const [width, height] = [240, 48];
const unitNames = { gpu: "GPU", cpu: "Host memory" };

const shape = (name, className) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  made.setAttribute("class", className);
  return made;
};

export class Sparkline {
  constructor(svg) {
    this.values = [];
    this.svg = svg;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.base = shape("path", "base");
    this.area = shape("path", "area");
    this.line = shape("path", "line");
    this.base.setAttribute("d", `M0 ${height}H${width}`);
    svg.append(this.base, this.area, this.line);
  }

  add(value) {
    this.values.push(value);
    if (this.values.length > looks) this.values.shift();
    const most = Math.max(...this.values, 1e-9);
    const first = looks - this.values.length;
    const points = this.values.map((one, at) => {
      const x = ((first + at) / (looks - 1)) * width;
      return `${x.toFixed(1)} ${(height - 1 - (one / most) * (height - 3)).toFixed(1)}`;
    });
    const path = `M${points.join("L")}`;
    this.line.setAttribute("d", path);
    this.area.setAttribute("d", `${path}V${height}H${((first / (looks - 1)) * width).toFixed(1)}Z`);
    const told = most < 1e-6 ? "nothing" : `at most ${most.toFixed(1)}, now ${value.toFixed(1)}`;
    this.svg.setAttribute("aria-label", `Tokens a second, in the last minute: ${told}`);
  }
}

// Bytes placed on each unit by purpose; keys and values count as far as pages are used.
export class MemoryBars {
  constructor(root) {
    this.root = root;
  }

  open({ memory, pages }) {
    this.rows = Object.entries(memory).map(([unit, { used, budget }]) => {
      const parts = Object.entries(used).filter(([, size]) => size > 0).sort(([, a], [, b]) => b - a);
      const placed = parts.reduce((sum, [, size]) => sum + size, 0);
      const bar = element("div", `bar ${unit}`);
      for (const [purpose, size] of parts) {
        const part = element("i");
        part.style.width = `${(100 * size) / (budget ?? placed)}%`;
        part.title = `${purpose}: ${bytes(size)}`;
        bar.append(part);
      }
      const total = element("span", "", budget ? `${bytes(placed)} of ${bytes(budget)}` : bytes(placed));
      const name = element("p", "name", element("b", "", unitNames[unit]), total);
      const shown = parts.map(([purpose, size]) => `${purpose} ${bytes(size)}`).join(" · ");
      return element("div", "unit-row", name, bar, element("p", "purposes", shown));
    });
    this.kv = this.#row("Keys and values in use");
    this.process = element("p", "purposes");
    this.root.replaceChildren(...this.rows, this.kv.node, this.process);
    this.total = pages.total;
  }

  take(now, pages) {
    const { used, cached } = now.pages;
    this.kv.total.textContent = `${bytes(used * pages.bytes)} of ${bytes(pages.total * pages.bytes)}`;
    this.kv.parts[0].style.width = `${(100 * used) / pages.total}%`;
    this.kv.parts[1].style.width = `${(100 * cached) / pages.total}%`;
    this.kv.note.textContent = cached ? `and ${bytes(cached * pages.bytes)} kept for prompts that begin alike` : "";
    this.process.textContent = `The process holds ${bytes(now.resident)} of host memory.`;
  }

  #row(title) {
    const parts = [element("i"), element("i")];
    const total = element("span");
    const note = element("p", "purposes");
    const name = element("p", "name", element("b", "", title), total);
    return { parts, total, note, node: element("div", "unit-row", name, element("div", "bar kv", ...parts), note) };
  }
}
