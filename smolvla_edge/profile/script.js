// Zoom, pan and tooltips of the timeline. Without it the page still shows everything, and the
// browser shows the facts of a bar by itself.
(function () {
  "use strict";
  const scroll = document.getElementById("scroll");
  const drawing = document.getElementById("timeline");
  const axis = document.getElementById("axis");
  const tip = document.getElementById("tip");
  const total = parseFloat(drawing.dataset.ms);
  const most = 400;
  let zoom = 1;

  // Our tooltip instead of the browser's, which comes late and at its own place.
  for (const title of drawing.querySelectorAll("title")) {
    title.parentNode.dataset.facts = title.textContent;
    title.remove();
  }

  function element(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text) made.textContent = text;
    return made;
  }

  function ticks() {
    // A round step that leaves about 110 pixels between two labels.
    const wanted = (total * 110) / Math.max(drawing.clientWidth, 1);
    const power = Math.pow(10, Math.floor(Math.log10(wanted)));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= wanted) || 10 * power;
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    // Of a deep zoom only what is in sight, or there would be thousands of them.
    const from = (scroll.scrollLeft / drawing.clientWidth) * total - step;
    const to = ((scroll.scrollLeft + scroll.clientWidth) / drawing.clientWidth) * total + step;
    axis.textContent = "";
    for (let i = Math.max(0, Math.floor(from / step)); i * step <= Math.min(to, total); ++i) {
      const x = ((100 * i * step) / total).toFixed(5) + "%";
      axis.append(element("line", { x1: x, x2: x, y1: 0, y2: "100%" }));
      const words = (i * step).toFixed(digits) + " ms";
      axis.append(element("text", { x: x, dx: 3, y: 13 }, words));
    }
  }

  function zoomTo(next, center) {
    // The moment under `center` (pixels from the left edge) stays where it is.
    const moment = (scroll.scrollLeft + center) / drawing.clientWidth;
    zoom = Math.min(Math.max(next, 1), most);
    drawing.style.width = 100 * zoom + "%";
    scroll.scrollLeft = moment * drawing.clientWidth - center;
    ticks();
  }

  const middle = () => scroll.clientWidth / 2;
  document.getElementById("in").onclick = () => zoomTo(zoom * 2, middle());
  document.getElementById("out").onclick = () => zoomTo(zoom / 2, middle());
  document.getElementById("fit").onclick = () => zoomTo(1, 0);
  scroll.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const center = event.clientX - scroll.getBoundingClientRect().left;
      zoomTo(zoom * Math.pow(1.0015, -event.deltaY), center);
    },
    { passive: false }
  );
  scroll.addEventListener("scroll", ticks);
  window.addEventListener("resize", ticks);

  let grabbed = null;
  scroll.addEventListener("pointerdown", (event) => {
    grabbed = event.clientX + scroll.scrollLeft;
    scroll.classList.add("drag");
  });
  window.addEventListener("pointermove", (event) => {
    if (grabbed !== null) scroll.scrollLeft = grabbed - event.clientX;
  });
  window.addEventListener("pointerup", () => {
    grabbed = null;
    scroll.classList.remove("drag");
  });

  drawing.addEventListener("pointermove", (event) => {
    const shape = event.target.closest("g[data-facts]");
    tip.hidden = !shape;
    if (!shape) return;
    tip.textContent = shape.dataset.facts;
    tip.style.left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 18 + "px";
  });
  drawing.addEventListener("pointerleave", () => (tip.hidden = true));
  ticks();
})();
