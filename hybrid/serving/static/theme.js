// The colour scheme, before anything is painted: the system's, or the one that was chosen here.
(() => {
  const place = "hybrid.theme";
  const names = { auto: "Auto", light: "Light", dark: "Dark" };
  const root = document.documentElement;

  const stored = () => {
    try {
      const value = localStorage.getItem(place);
      return value in names ? value : "auto";
    } catch {
      return "auto"; // storage is switched off
    }
  };

  const apply = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.querySelector(".long").textContent = names[theme];
      button.setAttribute("aria-label", `Colour scheme: ${names[theme].toLowerCase()}; change it`);
    }
    document.dispatchEvent(new Event("themechange"));
  };

  apply(stored());
  document.addEventListener("DOMContentLoaded", () => {
    apply(stored());
    document.getElementById("theme").addEventListener("click", () => {
      const all = Object.keys(names);
      const next = all[(all.indexOf(root.dataset.theme ?? "auto") + 1) % all.length];
      try {
        localStorage.setItem(place, next);
      } catch {
        // it then holds for this page alone
      }
      apply(next);
    });
  });
})();
