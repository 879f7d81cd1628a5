(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("scripted");

  // Theme: what the system says, until the reader chooses. Storage may be forbidden for local files.
  const themes = ["auto", "light", "dark"];
  const toggle = document.getElementById("theme-toggle");
  const recall = () => { try { return localStorage.getItem("jaxcore-report-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("jaxcore-report-theme", theme); } catch { /* not kept */ } };
  const show = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    toggle.querySelector(".theme-name").textContent = theme[0].toUpperCase() + theme.slice(1);
    toggle.setAttribute("aria-label", `Theme: ${theme}`);
    toggle.dataset.value = theme;
  };
  const stored = recall();
  show(themes.includes(stored) ? stored : "auto");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const next = themes[(themes.indexOf(toggle.dataset.value) + 1) % themes.length];
    show(next);
    remember(next);
  });

  // Tooltips of tokens: by mouse, by touch (a tap focuses) and by keyboard. The title would show a second one.
  const tooltip = document.getElementById("tooltip");
  const tokens = document.querySelectorAll(".tokens > span");
  for (const token of tokens) {
    token.dataset.tip = token.title;
    token.removeAttribute("title");
  }
  const tokenOf = (event) => event.target instanceof Element ? event.target.closest(".tokens > span") : null;
  let described = null;
  const hide = () => {
    tooltip.hidden = true;
    if (described) described.removeAttribute("aria-describedby");
    described = null;
  };
  const explain = (token) => {
    hide();
    tooltip.textContent = token.dataset.tip;
    tooltip.hidden = false;
    token.setAttribute("aria-describedby", "tooltip");
    described = token;
    place(token);
  };
  const place = (token) => {
    const box = token.getClientRects()[0];
    const { offsetWidth: width, offsetHeight: height } = tooltip;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), root.clientWidth - width - 8);
    const above = box.top - height - 8;
    tooltip.style.left = `${Math.max(8, left)}px`;
    tooltip.style.top = `${above >= 8 ? above : box.bottom + 8}px`;
  };
  document.addEventListener("mouseover", (event) => {
    const token = tokenOf(event);
    if (token) explain(token); else if (described && described !== document.activeElement) hide();
  });
  document.addEventListener("focusin", (event) => { const token = tokenOf(event); if (token) explain(token); });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", () => { if (described) place(described); }, { passive: true, capture: true });

  // One tab stop for each document; arrow keys move within it.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const token = tokenOf(event);
    if (!token) return;
    const all = [...token.parentElement.querySelectorAll(":scope > span")];
    const at = all.indexOf(token);
    const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (target === undefined || !all[target]) return;
    event.preventDefault();
    token.tabIndex = -1;
    all[target].tabIndex = 0;
    all[target].focus({ preventScroll: true });
    all[target].scrollIntoView({ block: "nearest" });
    explain(all[target]);
  });

  // Contents: mark the section being read.
  const links = new Map([...document.querySelectorAll(".contents a")].map((a) => [a.hash.slice(1), a]));
  if (links.size && "IntersectionObserver" in window) {
    const visible = new Set();
    const sections = [...document.querySelectorAll("main > section")];
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) visible.add(entry.target.id); else visible.delete(entry.target.id);
      }
      const current = sections.find((section) => visible.has(section.id));
      for (const [id, link] of links) {
        if (current && id === current.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }, { rootMargin: "-10% 0px -60% 0px" });
    sections.forEach((section) => observer.observe(section));
  }

  // Paper cannot unfold: print the folded tables too.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
