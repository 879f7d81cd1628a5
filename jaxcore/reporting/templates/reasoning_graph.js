(() => {
  "use strict";
  // Text of traces reaches the page through textContent only, never as markup.
  const byId = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const sections = [...document.querySelectorAll(".trace")];
  const traces = sections.map((section) => JSON.parse(section.dataset.graph));
  const traceChoice = byId("trace-choice"), methodChoice = byId("method-choice");
  const directionChoice = byId("direction-choice"), topChoice = byId("top-choice");
  let current = 0, chosen = null;

  const edges = () => traces[current].influences[methodChoice.value] || [];
  // The strongest influences into a sentence (or out of it), by magnitude.
  const strongest = (step, direction, top) => {
    const end = direction === "in" ? 1 : 0;
    return edges().filter((edge) => edge[end] === step)
      .sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, top);
  };

  const drawArcs = () => {
    const section = sections[current], lane = section.querySelector(".lane"), svg = section.querySelector(".arcs");
    svg.replaceChildren();
    const rows = [...section.querySelectorAll(".step")];
    const top = lane.getBoundingClientRect().top, width = svg.getBoundingClientRect().width;
    const heights = rows.map((row) => { const box = row.getBoundingClientRect(); return box.top - top + box.height / 2; });
    const shown = new Map();
    rows.forEach((_, step) => {
      for (const direction of ["in", "out"]) {
        for (const edge of strongest(step, direction, Number(topChoice.value))) shown.set(`${edge[0]} ${edge[1]}`, edge);
      }
    });
    const most = Math.max(...[...shown.values()].map((edge) => Math.abs(edge[2])), 1e-12);
    for (const [source, target, value] of shown.values()) {
      const from = heights[source], to = heights[target];
      const reach = width * (0.15 + 0.85 * Math.sqrt(Math.min(1, (target - source) / Math.max(rows.length / 2, 1))));
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", `M${width} ${from}C${width - reach} ${from} ${width - reach} ${to} ${width} ${to}`);
      path.setAttribute("stroke-width", (0.6 + 2.6 * Math.abs(value) / most).toFixed(2));
      if (value < 0) path.classList.add("fell");
      if (chosen === source || chosen === target) path.classList.add("near");
      svg.append(path);
    }
    section.classList.toggle("choosing", chosen !== null);
    const linked = new Set([...shown.values()].filter((edge) => edge[0] === chosen || edge[1] === chosen).flatMap((edge) => [edge[0], edge[1]]));
    rows.forEach((row, step) => {
      row.setAttribute("aria-pressed", String(step === chosen));
      row.classList.toggle("linked", linked.has(step) && step !== chosen);
    });
  };

  const tree = (step, depth) => {
    const direction = directionChoice.value, list = make("ul", depth === 2 ? "tree" : "");
    for (const edge of strongest(step, direction, Number(topChoice.value))) {
      const other = edge[direction === "in" ? 0 : 1], item = make("li"), button = make("button");
      button.type = "button";
      button.append(make("span", "count", edge[2].toPrecision(3)), make("span", "", `${other}: ${traces[current].steps[other].text}`));
      button.addEventListener("click", () => choose(other));
      item.append(button);
      if (depth > 1) item.append(tree(other, depth - 1));
      list.append(item);
    }
    return list;
  };

  const describe = () => {
    const panel = sections[current].querySelector(".detail");
    panel.replaceChildren();
    panel.hidden = chosen === null;
    if (chosen === null) return;
    const step = traces[current].steps[chosen];
    panel.append(make("p", "note", `Sentence ${chosen}: ${step.function.replaceAll("_", " ")}`), make("p", "", step.text));
    if (step.importance) panel.append(make("p", "", `Importance ${step.importance} nats`));
    if (step.note) panel.append(make("p", "", step.note));
    panel.append(make("h3", "", directionChoice.selectedOptions[0].textContent));
    const found = tree(chosen, 2);
    panel.append(found.children.length ? found : make("p", "note", "nothing"));
    panel.append(make("h3", "", "Written in its place"));
    const resamples = make("ul", "resamples");
    for (const [text, count] of step.resamples) {
      const item = make("li");
      item.append(make("span", "count", `${count} \u00d7`), make("span", "", text));
      resamples.append(item);
    }
    panel.append(step.resamples.length ? resamples : make("p", "note", "nothing was resampled"));
  };

  const redraw = () => { byId("top-shown").textContent = topChoice.value; describe(); drawArcs(); };
  const choose = (step) => { chosen = step; redraw(); };
  const show = (number) => {
    current = number;
    sections.forEach((section, other) => { section.hidden = other !== number; });
    const before = methodChoice.value, names = Object.keys(traces[number].influences);
    methodChoice.replaceChildren(...names.map((name) => { const option = make("option", "", name); option.value = name; return option; }));
    if (names.includes(before)) methodChoice.value = before;
    choose(null);
  };

  sections.forEach((section) => {
    section.querySelectorAll(".step").forEach((row, step) => {
      row.addEventListener("click", () => choose(chosen === step ? null : step));
    });
  });
  traceChoice.addEventListener("change", () => show(Number(traceChoice.value)));
  for (const choice of [methodChoice, directionChoice]) choice.addEventListener("change", redraw);
  topChoice.addEventListener("input", redraw);
  document.querySelector(".choices").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && chosen !== null) choose(null); });
  new ResizeObserver(drawArcs).observe(byId("content"));
  document.querySelector(".choices").hidden = false;
  show(0);
})();
