"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// --- colours: as the system, or as chosen

const schemes = ["auto", "light", "dark"];
const schemeNames = { auto: "system", light: "light", dark: "dark" };
$("scheme").addEventListener("click", () => {
  const root = document.documentElement;
  const next = schemes[(schemes.indexOf(root.dataset.scheme) + 1) % schemes.length];
  root.dataset.scheme = next;
  $("scheme").textContent = `Colours: ${schemeNames[next]}`;
  $("scheme").setAttribute("aria-label", `Colours: ${schemeNames[next]}`);
});

// --- the tooltip: names and values above what they belong to, or below it

const tip = $("tip");
let shown = null;

function show(target, pairs, below = false) {
  if (shown !== target) {
    hide();
    const list = element("dl");
    for (const [name, value] of pairs) {
      if (value !== "") list.append(element("dt", {}, name), element("dd", {}, value));
    }
    tip.replaceChildren(list);
    shown = target;
    shown.classList.add("shown");
    shown.setAttribute("aria-describedby", "tip");
    tip.hidden = false;
  }
  place(below);
}

function place(below = false) {
  const at = shown.getBoundingClientRect(), own = tip.getBoundingClientRect(), gap = 10;
  const middle = (at.left + at.right) / 2 - own.width / 2;
  const left = Math.min(Math.max(8, middle), document.documentElement.clientWidth - own.width - 8);
  const above = at.top - own.height - gap, under = at.bottom + gap;
  const lowest = window.innerHeight - own.height - 8;
  const top = above > 8 && !(below && under < lowest) ? above : Math.min(under, lowest);
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

function hide() {
  if (!shown) return;
  shown.classList.remove("shown");
  shown.removeAttribute("aria-describedby");
  shown = null;
  tip.hidden = true;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});
document.addEventListener("scroll", () => {
  if (shown === document.activeElement) place();
  else hide();
}, { capture: true, passive: true });
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".picture svg, #cells")) hide();
});

// One of `items` can be reached by Tab; arrows, Home and End go on from there.
function roving(items, onFocus) {
  items.forEach((item, i) => {
    item.setAttribute("tabindex", i === 0 ? "0" : "-1");
    item.addEventListener("focus", () => onFocus(item));
    item.addEventListener("blur", hide);
    item.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      let next = null;
      if (event.key in steps) next = items[i + steps[event.key]];
      else if (event.key === "Home") next = items[0];
      else if (event.key === "End") next = items[items.length - 1];
      else return;
      event.preventDefault();
      event.stopPropagation();
      if (!next) return;
      item.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  });
}

// --- pictures: every mark shows its row

const REACH = 14; // pixels from which a mark is pointed at

for (const figure of document.querySelectorAll("figure.picture")) {
  const { header, rows } = data.pictures[figure.id];
  const svg = figure.querySelector("svg");
  const marks = [...svg.querySelectorAll(".mark")];
  const pairs = (mark) => rows[mark.dataset.row].map((value, i) => [header[i], value]);
  for (const mark of marks) {
    mark.setAttribute("role", "img");
    const words = pairs(mark).filter(([, value]) => value !== "");
    mark.setAttribute("aria-label", words.map((pair) => pair.join(" ")).join(", "));
  }
  marks.sort((a, b) => a.dataset.row - b.dataset.row);
  roving(marks, (mark) => {
    if (!mark.matches(":focus-visible")) return; // who points at it sees it
    mark.scrollIntoView({ block: "nearest", inline: "center", behavior: "instant" });
    show(mark, pairs(mark));
  });

  const nearest = (x, y) => {
    let best = null, least = REACH, size = Infinity;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const dx = Math.max(box.left - x, 0, x - box.right);
      const dy = Math.max(box.top - y, 0, y - box.bottom);
      const away = Math.hypot(dx, dy), area = box.width * box.height;
      if (away < least || (away === least && area < size)) [best, least, size] = [mark, away, area];
    }
    return best;
  };
  const point = (event) => {
    const mark = event.target.closest(".mark") ?? nearest(event.clientX, event.clientY);
    if (mark) show(mark, pairs(mark));
    else hide();
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("click", point); // a tap
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());

  const details = figure.querySelector("details.values");
  details.addEventListener("toggle", () => {
    const place = details.querySelector(".scroll");
    if (!details.open || place.firstChild) return;
    const line = (name, cells) => element("tr", {}, ...cells.map((c) => element(name, {}, c)));
    place.append(element("table", {},
      element("thead", {}, line("th", header)),
      element("tbody", {}, ...rows.map((row) => line("td", row)))));
  });
}

// --- the player

if (data.runs.length) player(data.runs, data.scale);

function player(runs, scale) {
  const still = 900; // milliseconds a frame at speed 1
  const kinds = {
    seed: "given by the forward before", mask: "undecided", new: "committed just now",
    kept: "committed", draft: "a draft, not yet verified", right: "a draft that was right",
    own: "the verifier's own token", dropped: "a draft given up",
  };
  let run = runs[0], at = 0, timer = null;

  const options = (select, names) => {
    select.replaceChildren(...names.map((name) => element("option", {}, name)));
  };
  options($("prompt"), [...new Set(runs.map((each) => each.prompt))]);
  const modesOf = (prompt) => runs.filter((each) => each.prompt === prompt);
  options($("mode"), modesOf(run.prompt).map((each) => each.mode));

  const cells = run.frames[0].cells.map(() => element("li"));
  $("cells").replaceChildren(...cells);
  const meaning = (i) => {
    const cell = run.frames[at].cells[i];
    return [
      ["position", String(i)],
      ["token", cell.text || (cell.was ? "" : "mask")],
      ["state", kinds[cell.kind]],
      ["probability", cell.confidence === null ? "" : cell.confidence.toFixed(4)],
      ["chosen by", cell.at === null ? "" : `forward ${cell.at}`],
      ["draft was", cell.was ?? ""],
    ];
  };
  const showCell = (cell) => show(cell, meaning(cells.indexOf(cell)), true);
  roving(cells, showCell);
  for (const cell of cells) {
    cell.addEventListener("pointermove", () => showCell(cell));
    cell.addEventListener("click", () => showCell(cell));
    cell.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  }

  function draw() {
    const frame = run.frames[at], last = run.frames.length - 1;
    hide();
    frame.cells.forEach((cell, i) => {
      const li = cells[i];
      li.className = cell.kind;
      li.replaceChildren(cell.text || (cell.kind === "dropped" ? cell.was : "·"));
      if (cell.was !== null && cell.kind === "own") {
        li.append(element("small", {}, cell.was));
      }
      const color = cell.confidence === null ? null :
        scale[Math.round(cell.confidence * (scale.length - 1))];
      li.style.setProperty("--fill", color ? color[0] : "");
      li.style.setProperty("--on-fill", color ? color[1] : "");
      const words = meaning(i).filter(([, value]) => value !== "");
      li.setAttribute("aria-label", words.map((pair) => pair.join(" ")).join(", "));
    });
    const there = new Set(run.frames.flatMap((each) => each.cells.map((cell) => cell.kind)));
    for (const li of document.querySelectorAll(".legend li[data-kinds]")) {
      li.hidden = !li.dataset.kinds.split(" ").some((kind) => there.has(kind));
    }
    $("what").textContent = frame.what;
    $("before").textContent = frame.before || "nothing yet";
    $("before").className = frame.before ? "" : "quiet";
    $("block").textContent = String(frame.block);
    $("block-name").textContent = run.block_name;
    $("forwards").textContent = String(frame.forwards);
    $("tokens").textContent = String(frame.tokens);
    // As in the quality record: the first token is the prefill's.
    $("tpf").textContent =
      frame.forwards ? ((frame.tokens - 1) / frame.forwards).toFixed(2) : "–";
    $("answer").textContent = run.answer;
    $("verdict").textContent = run.right ? "right" : "wrong";
    $("end").hidden = at < last;
    $("slider").max = String(last);
    $("slider").value = String(at);
    $("slider").setAttribute("aria-valuetext", `frame ${at + 1} of ${last + 1}: ${frame.what}`);
    $("back").disabled = $("first").disabled = at === 0;
    $("forward").disabled = at === last;
  }

  function go(to) {
    at = Math.min(Math.max(to, 0), run.frames.length - 1);
    draw();
  }
  function pause() {
    clearTimeout(timer);
    timer = null;
    $("play").textContent = "Play";
    $("what").setAttribute("aria-live", "polite");
  }
  function tick() {
    timer = setTimeout(() => {
      go(at + 1);
      if (at < run.frames.length - 1) tick();
      else pause();
    }, still / Number($("speed").value));
  }
  function play() {
    if (at === run.frames.length - 1) go(0);
    $("play").textContent = "Pause";
    $("what").setAttribute("aria-live", "off"); // it would be read out faster than one can listen
    tick();
  }
  const toggle = () => (timer === null ? play() : pause());
  const step = (by) => { pause(); go(at + by); };
  const choose = () => {
    pause();
    const there = modesOf($("prompt").value);
    run = there[Math.max(0, $("mode").selectedIndex)] ?? there[0];
    go(0);
  };

  $("play").addEventListener("click", toggle);
  $("first").addEventListener("click", () => step(-Infinity));
  $("back").addEventListener("click", () => step(-1));
  $("forward").addEventListener("click", () => step(1));
  $("slider").addEventListener("input", () => step(Number($("slider").value) - at));
  $("prompt").addEventListener("change", choose);
  $("mode").addEventListener("change", choose);
  $("player").addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const own = event.target.closest("select, input");
    if (event.key === " " && !own && !event.target.closest("button")) toggle();
    else if (event.key === "ArrowRight" && !own) step(1);
    else if (event.key === "ArrowLeft" && !own) step(-1);
    else return;
    event.preventDefault();
  });
  draw();
}
