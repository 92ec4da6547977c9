// The neuron map: a line for each layer, a cell for each bucket of its rows, coloured by where they lie, and the brighter
// the more of them fired for the tokens of the last half second.
import { element, percent, whole } from "./words.js";

const names = { gpu: "GPU", ram: "RAM", flash: "flash" };
const least = 0.1; // of a colour, where nothing fires: it still says where rows lie
const easing = 0.25; // of the way to what is new, with each picture

const unpacked = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

export class NeuronMap {
  constructor(canvas, readout, legend) {
    Object.assign(this, { canvas, readout, legend });
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.at = null; // { layer, bucket } that is looked at
    this.cells = document.createElement("canvas"); // a pixel for each cell
    const move = (event) => this.#look(this.#cell(event));
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerdown", move);
    canvas.addEventListener("pointerleave", () => this.#look(document.activeElement === canvas ? this.at : null));
    canvas.addEventListener("focus", () => this.#look(this.at ?? { layer: 0, bucket: 0 }));
    canvas.addEventListener("blur", () => this.#look(null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("themechange", () => this.#colours());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#colours());
    new ResizeObserver(() => this.#size()).observe(canvas);
  }

  open({ layers, rows, neurons }) {
    this.neurons = neurons;
    if (!neurons) return;
    const count = layers * neurons.buckets;
    Object.assign(this, { layers, rows, buckets: neurons.buckets });
    this.places = unpacked(neurons.places);
    this.target = new Float32Array(count); // square roots of shares: what seldom fires is seen too
    this.shown = new Float32Array(count);
    this.cells.width = this.buckets;
    this.cells.height = layers;
    const used = neurons.residences.filter((_, place) => this.places.includes(place));
    this.legend.replaceChildren(
      ...used.map((place) => element("li", place, element("span", "ramp"), names[place])),
      element("li", "scale", "none to all of them fired"),
    );
    this.#colours();
    this.#size();
    this.#tell();
  }

  // base64 of a byte for each cell; null where no token passed
  take(fired) {
    if (!this.neurons) return;
    if (fired === null) this.target.fill(0);
    else unpacked(fired).forEach((value, cell) => { this.target[cell] = value / 255; });
    if (this.at) this.#tell();
    this.#animate();
  }

  #animate() {
    if (this.still.matches) {
      this.shown.set(this.target);
      this.#paint();
      return;
    }
    if (this.frame) return;
    const step = () => {
      let moving = false;
      for (let cell = 0; cell < this.shown.length; cell += 1) {
        const gap = this.target[cell] - this.shown[cell];
        moving ||= Math.abs(gap) > 0.004;
        this.shown[cell] += easing * gap;
      }
      this.#paint();
      this.frame = moving ? requestAnimationFrame(step) : 0;
    };
    this.frame = requestAnimationFrame(step);
  }

  // Colours of the page for each place and share, as the canvas needs them.
  #colours() {
    if (!this.neurons) return;
    const probe = element("span");
    this.canvas.after(probe);
    const colour = (name) => {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
    };
    const ground = colour("sunken");
    this.ink = `rgb(${colour("ink").join(" ")})`;
    this.ramps = this.neurons.residences.map((place) => {
      const full = colour(place);
      return Array.from({ length: 256 }, (_, value) => {
        const share = least + (1 - least) * (value / 255);
        return ground.map((part, at) => part + share * (full[at] - part));
      });
    });
    probe.remove();
    this.#paint();
  }

  #size() {
    if (!this.neurons || !this.canvas.clientWidth) return;
    const scale = devicePixelRatio || 1;
    const line = Math.max(4, Math.min(22, Math.round(260 / this.layers)));
    this.canvas.style.height = `${line * this.layers}px`;
    this.canvas.width = Math.round(this.canvas.clientWidth * scale);
    this.canvas.height = Math.round(line * this.layers * scale);
    this.#paint();
  }

  #paint() {
    if (!this.ramps || !this.canvas.width) return;
    const inner = this.cells.getContext("2d");
    const image = inner.createImageData(this.buckets, this.layers);
    for (let cell = 0; cell < this.shown.length; cell += 1) {
      const colour = this.ramps[this.places[cell]][Math.min(255, Math.round(255 * this.shown[cell]))];
      image.data.set([colour[0], colour[1], colour[2], 255], 4 * cell);
    }
    inner.putImageData(image, 0, 0);
    const outer = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    outer.clearRect(0, 0, width, height);
    outer.imageSmoothingEnabled = false;
    const line = height / this.layers;
    for (let layer = 0; layer < this.layers; layer += 1) {
      const [top, bottom] = [Math.round(layer * line), Math.round((layer + 1) * line)];
      outer.drawImage(this.cells, 0, layer, this.buckets, 1, 0, top, width, bottom - top - 1);
    }
    if (this.at) {
      const column = width / this.buckets;
      outer.strokeStyle = this.ink;
      outer.lineWidth = Math.max(1, Math.round(devicePixelRatio || 1));
      outer.strokeRect(this.at.bucket * column - 1, this.at.layer * line, column + 2, line - 1);
    }
  }

  #cell(event) {
    if (!this.neurons) return null;
    const box = this.canvas.getBoundingClientRect();
    const place = (value, size, count) => Math.max(0, Math.min(count - 1, Math.floor((value / size) * count)));
    return {
      layer: place(event.clientY - box.top, box.height, this.layers),
      bucket: place(event.clientX - box.left, box.width, this.buckets),
    };
  }

  #key(event) {
    const at = this.at ?? { layer: 0, bucket: 0 };
    const far = event.shiftKey ? 16 : 1;
    const ways = {
      ArrowLeft: [0, -far], ArrowRight: [0, far], ArrowUp: [-1, 0], ArrowDown: [1, 0],
      Home: [0, -this.buckets], End: [0, this.buckets], PageUp: [-this.layers, 0], PageDown: [this.layers, 0],
    };
    if (!this.neurons || !(event.key in ways)) return;
    event.preventDefault();
    const within = (value, count) => Math.max(0, Math.min(count - 1, value));
    const [down, right] = ways[event.key];
    this.#look({ layer: within(at.layer + down, this.layers), bucket: within(at.bucket + right, this.buckets) });
  }

  #look(at) {
    this.at = at;
    this.#tell();
    this.#paint();
  }

  #tell() {
    if (!this.at || !this.neurons) {
      this.readout.textContent = "Point at a cell, or use the arrow keys.";
      this.readout.className = "readout idle";
      return;
    }
    this.readout.className = "readout";
    const { layer, bucket } = this.at;
    const first = bucket * this.neurons.bucket_rows;
    const last = Math.min(first + this.neurons.bucket_rows, this.rows) - 1;
    const cell = layer * this.buckets + bucket;
    const rows = last > first ? `rows ${whole(first)} to ${whole(last)}` : `row ${whole(first)}`;
    const place = names[this.neurons.residences[this.places[cell]]];
    const share = percent(this.target[cell] ** 2);
    this.readout.replaceChildren(element("b", "", `Layer ${layer}`), `, ${rows}, in ${place}: ${share} fired`);
  }
}
