(() => {
  "use strict";
  // A target (hovered, tapped or focused) lights up the segments before it, by the method and at the level chosen.
  const number = (value) => (value > 0 ? "+" : "") + String(Number(value.toPrecision(3))).replace("-", "−");

  for (const figure of document.querySelectorAll(".generation")) {
    const levels = [...figure.querySelectorAll(".level")];
    const buttons = [...figure.querySelectorAll(".choice button")];
    let method = "0";

    const show = (level, target) => {
      const sources = level.querySelectorAll(".sources > span");
      const values = target.dataset[`scores${method}`].split(" ").map(Number);
      const most = Math.max(...values.map(Math.abs));
      sources.forEach((source, index) => {
        const value = values[index] || 0;
        source.classList.toggle("positive", value > 0);
        source.classList.toggle("negative", value < 0);
        source.style.setProperty("--a", most ? (Math.abs(value) / most).toFixed(3) : "0");
        source.dataset.tip = index < values.length ? `${source.textContent}: ${number(value)}` : source.textContent;
      });
      for (const other of level.querySelectorAll(".targets > .selected")) other.classList.remove("selected");
      target.classList.add("selected");
      level.querySelector(".why").textContent = `${target.dataset.why} Full colour: ${number(most).replace("+", "")}.`;
    };
    const pinned = new Map(levels.map((level) => [level, level.querySelector(".targets > span")]));
    const showPinned = (level) => { if (pinned.get(level)) show(level, pinned.get(level)); };

    for (const level of levels) {
      const targets = level.querySelector(".targets");
      const targetOf = (event) => event.target instanceof Element ? event.target.closest(".targets > span") : null;
      targets.addEventListener("mouseover", (event) => { const target = targetOf(event); if (target) show(level, target); });
      targets.addEventListener("mouseleave", () => showPinned(level));
      for (const kind of ["focusin", "click"]) {
        targets.addEventListener(kind, (event) => {
          const target = targetOf(event);
          if (!target) return;
          pinned.set(level, target);
          show(level, target);
        });
      }
      showPinned(level);
    }
    for (const button of buttons) {
      button.disabled = false;
      button.addEventListener("click", () => {
        for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
        if (button.dataset.method !== undefined) method = button.dataset.method;
        else for (const level of levels) level.hidden = level.dataset.level !== button.dataset.level;
        levels.forEach(showPinned);
      });
    }
  }
})();
