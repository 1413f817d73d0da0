"use strict";
const $ = (id) => document.getElementById(id);

// --- the tooltip: a mark's row of the picture's table, above the mark or below it

const tip = $("tip");
let shown = null;

function show(mark) {
  if (shown !== mark) {
    hide();
    shown = mark;
    tip.replaceChildren(...mark.values.map((pair) => {
      const line = document.createElement("div");
      for (const text of pair) line.append(Object.assign(document.createElement("span"), { textContent: text }));
      return line;
    }));
    mark.classList.add("shown");
    tip.hidden = false;
  }
  const at = mark.getBoundingClientRect(), own = tip.getBoundingClientRect(), gap = 10;
  const most = document.documentElement.clientWidth - own.width - 8;
  const left = Math.max(8, Math.min((at.left + at.right - own.width) / 2, most));
  const above = at.top - own.height - gap, below = at.bottom + gap;
  const top = above > 8 ? above : Math.min(below, innerHeight - own.height - 8);
  tip.style.translate = `${Math.round(left)}px ${Math.round(top)}px`;
}

function hide() {
  shown?.classList.remove("shown");
  shown = null;
  tip.hidden = true;
}

addEventListener("keydown", (event) => event.key === "Escape" && hide());
addEventListener("scroll", () => (shown === document.activeElement ? show(shown) : hide()), true);
addEventListener("pointerdown", (event) => event.target.closest("figure svg") || hide());

// --- pictures: marks answer the mouse, a tap, and the keys

const REACH = 14; // pixels from which a mark is pointed at

for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg"), marks = [...svg.querySelectorAll(".mark")];
  const lines = [...figure.querySelectorAll("tr")];
  const [names, ...rows] = lines.map((line) => [...line.cells].map((cell) => cell.textContent));
  // What is the same in all rows tells nothing of one.
  const tells = names.map((_, j) => rows.length === 1 || new Set(rows.map((row) => row[j])).size > 1);
  marks.sort((a, b) => a.dataset.row - b.dataset.row);
  marks.forEach((mark, i) => {
    const values = rows[mark.dataset.row];
    const pairs = names.map((name, j) => [name, values[j]]);
    mark.values = pairs.filter((pair, j) => tells[j] && pair[1] !== "-");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", mark.values.map((pair) => pair.join(" ")).join(", "));
    mark.setAttribute("tabindex", i ? "-1" : "0"); // Tab reaches one, arrows the others
    mark.addEventListener("focus", () => mark.matches(":focus-visible") && show(mark));
    mark.addEventListener("blur", hide);
    mark.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1,
        Home: 0, End: marks.length - 1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      marks[steps[event.key]]?.focus();
    });
  });

  const point = (event) => {
    let nearest = null, least = [REACH, Infinity]; // how far away, then how large
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const dx = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
      const dy = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
      const here = [Math.hypot(dx, dy), box.width * box.height];
      if (here[0] < least[0] || (here[0] === least[0] && here[1] < least[1])) {
        [nearest, least] = [mark, here];
      }
    }
    if (nearest) show(nearest);
    else hide();
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("click", point); // a tap
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
}

// --- the player: of all frames one is shown

const STILL = 900; // milliseconds a frame

if ($("player")) {
  const runs = [...document.querySelectorAll(".run")];
  const slider = $("slider"), play = $("play");
  let frames = [], timer = null;

  const go = (to) => {
    slider.value = to;
    const at = Number(slider.value), last = frames.length - 1;
    frames.forEach((frame, i) => { frame.hidden = i !== at; });
    slider.setAttribute("aria-valuetext", frames[at].querySelector(".what").textContent);
    $("back").disabled = at === 0;
    $("forward").disabled = at === last;
    if (at === last) pause();
  };
  const pause = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  const step = (by) => go(Number(slider.value) + by);
  const choose = () => {
    pause();
    runs.forEach((run, i) => { run.hidden = i !== $("run").selectedIndex; });
    frames = [...runs[$("run").selectedIndex].querySelectorAll(".frame")];
    slider.max = frames.length - 1;
    go(0);
  };

  play.addEventListener("click", () => {
    if (timer !== null) return pause();
    if ($("forward").disabled) go(0);
    play.textContent = "Pause";
    timer = setInterval(() => step(1), STILL);
  });
  for (const [id, by] of [["back", -1], ["forward", 1]]) {
    $(id).addEventListener("click", () => { pause(); step(by); });
  }
  slider.addEventListener("input", () => { pause(); step(0); });
  $("run").addEventListener("change", choose);
  choose();
}
