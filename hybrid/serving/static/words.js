// Numbers and elements as the page writes them.
const groups = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const whole = (value) => groups.format(value);

export const rate = (value) => (value >= 100 ? groups.format(value) : value.toFixed(value >= 10 ? 1 : 2));

export const percent = (share) => {
  if (share <= 0) return "0 %";
  if (share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
};

export const bytes = (value) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${value.toFixed(at === 0 || value >= 100 ? 0 : 1)} ${units[at]}`;
};

export const seconds = (milliseconds) =>
  milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;

export const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;

// An element with a class, and text or other elements within: never markup.
export const element = (name, className = "", ...children) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
};

export const button = (text, className, act) => {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
};

// A list of terms; values are text.
export const facts = (list, pairs) => {
  const wanted = pairs.flatMap(([term, value]) => [term, value]);
  const have = [...list.querySelectorAll("dt, dd")];
  if (have.length === wanted.length) {
    have.forEach((part, at) => {
      if (part.textContent !== wanted[at]) part.textContent = wanted[at];
    });
    return;
  }
  list.replaceChildren(...pairs.map(([term, value]) => element("div", "", element("dt", "", term), element("dd", "", value))));
};
