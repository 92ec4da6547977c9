// What models write, as elements: fenced code, headings, code, bold and emphasis in a line. All of it becomes text nodes;
// nothing that a model writes is ever read as markup.
import { button, element } from "./words.js";

const fence = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;

// Stretches of a text: { code, language, closed } or { text }.
export const stretches = (text) => {
  const found = [];
  let plain = [];
  let open = null;
  const settle = () => {
    const words = plain.join("\n").replace(/^\n+|\n+$/g, "");
    if (words) found.push({ text: words });
    plain = [];
  };
  for (const line of text.split("\n")) {
    const mark = fence.exec(line);
    if (open) {
      if (mark && !mark[2] && mark[1][0] === open.mark[0] && mark[1].length >= open.mark.length) {
        found.push({ code: open.lines.join("\n"), language: open.language, closed: true });
        open = null;
      } else {
        open.lines.push(line);
      }
    } else if (mark) {
      settle();
      open = { mark: mark[1], language: mark[2], lines: [] };
    } else {
      plain.push(line);
    }
  }
  if (open) found.push({ code: open.lines.join("\n"), language: open.language, closed: false });
  else settle();
  return found;
};

const inline = /(`+)([^`](?:.*?[^`])?)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<![\w*])\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?![\w*])/g;

const inLine = (text) => {
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(inline)) {
    if (match.index > at) parts.push(text.slice(at, match.index));
    if (match[2] !== undefined) parts.push(element("code", "", match[2]));
    else if (match[3] !== undefined) parts.push(element("strong", "", match[3]));
    else parts.push(element("em", "", match[4]));
    at = match.index + match[0].length;
  }
  if (at < text.length) parts.push(text.slice(at));
  return parts;
};

const plainPart = (text) => {
  const part = element("div", "plain");
  text.split("\n").forEach((line, number) => {
    if (number) part.append("\n");
    const heading = /^#{1,6} +(.*)$/.exec(line);
    if (heading) part.append(element("strong", "", heading[1]));
    else part.append(...inLine(line));
  });
  return part;
};

const codePart = ({ code, language }, copy) => {
  const taking = button("Copy", "quiet", () => copy(code, taking));
  const header = element("header", "", element("span", "", language || "code"), taking);
  const pre = element("pre", "", element("code", "", code));
  pre.tabIndex = 0; // scrolled with the keyboard
  return element("div", "block", header, pre);
};

// Shows a text that grows: parts that did not change stay the elements they were.
export const growing = (body, copy) => {
  let shown = [];
  return (text) => {
    const now = stretches(text);
    let same = 0;
    const alike = (a, b) => a && a.text === b.text && a.code === b.code && a.language === b.language;
    while (same < now.length && alike(shown[same], now[same])) same += 1;
    while (body.childNodes.length > same) body.lastChild.remove();
    for (const part of now.slice(same)) body.append(part.text === undefined ? codePart(part, copy) : plainPart(part.text));
    for (const child of body.children) child.classList.remove("tail");
    const last = body.lastElementChild;
    if (last?.classList.contains("plain")) last.classList.add("tail");
    else last?.querySelector("code")?.classList.add("tail");
    for (const code of body.querySelectorAll("pre code")) code.classList.toggle("tail", code === last?.querySelector("code"));
    shown = now;
  };
};
