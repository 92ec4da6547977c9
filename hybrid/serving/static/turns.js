// One text in the log: what a person wrote, or an answer while it is written, with its sums and its buttons.
import { growing } from "./markup.js";
import { button, element, plural, rate, seconds, whole } from "./words.js";

export const copy = async (text, from) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", "unseen"); // pages without TLS may not use the clipboard itself
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = from.textContent;
  from.textContent = "Copied";
  setTimeout(() => {
    from.textContent = before;
  }, 1200);
};

export const asked = (text) =>
  element("article", "turn user", element("p", "who", "You"), element("div", "body", text));

export class Answer {
  // given: of a text that is continued, what it begins with; again: computes the answer anew
  constructor(name, { given = null, again }) {
    this.text = "";
    this.given = given;
    this.body = element("div", given === null ? "body" : "body continued");
    this.foot = element("div", "foot");
    this.node = element("article", "turn assistant", element("p", "who", name), this.body, this.foot);
    this.node.setAttribute("aria-busy", "true");
    this.again = again;
    this.began = performance.now();
    this.first = this.last = null;
    if (given === null) {
      this.show = growing(this.body, copy);
    } else {
      const tail = element("span", "tail");
      this.body.append(element("span", "given", given), tail);
      this.show = (text) => {
        tail.textContent = text;
      };
    }
    this.show("");
    if (given === null) this.body.append(element("div", "plain tail"));
  }

  // Texts come faster than a screen is painted.
  add(piece) {
    this.last = performance.now();
    this.first ??= this.last;
    this.text += piece;
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.show(this.text);
      this.grown?.();
    });
  }

  end({ usage = null, finish = null, stopped = false, failure = null } = {}) {
    cancelAnimationFrame(this.frame);
    this.show(this.text);
    this.node.removeAttribute("aria-busy");
    const sums = element("span", "sums", this.#sums(usage, finish, stopped));
    const taking = button("Copy", "quiet", () => copy((this.given ?? "") + this.text, taking));
    this.foot.replaceChildren(sums, ...(this.text ? [taking] : []), button("Regenerate", "quiet regenerate", this.again));
    if (failure) {
      const told = element("p", "failure", failure);
      told.setAttribute("role", "alert");
      this.foot.before(told);
    }
    this.grown?.();
  }

  #sums(usage, finish, stopped) {
    const parts = [];
    if (usage) {
      const count = usage.completion_tokens;
      parts.push(plural(count, "token"));
      if (count > 1 && this.last > this.first) parts.push(`${rate((1000 * (count - 1)) / (this.last - this.first))} tokens/s`);
      const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
      parts.push(`prompt of ${whole(usage.prompt_tokens)}${cached ? `, ${whole(cached)} known before` : ""}`);
    }
    if (this.first !== null) parts.push(`first after ${seconds(this.first - this.began)}`);
    if (stopped) parts.push(`stopped after ${seconds(performance.now() - this.began)}`);
    if (finish === "length") parts.push("cut at the most tokens");
    return parts.join(" · ");
  }
}
