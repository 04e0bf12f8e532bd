"use strict";
// Draws what stands in #page-data and, where the page is served by `vidlit watch`, takes up what changes. All text comes
// escaped from the server, or is set as text here: captions are strangers' words.
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const phone = matchMedia("(max-width: 720px)");
  const byId = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const make = (tag, words, of = {}) => Object.assign(document.createElement(tag), { textContent: words }, of);

  // -- numbers in words

  const number = (value) => {
    if (value == null) return "–";
    if (Math.abs(value) >= 100) return Math.round(value).toLocaleString("en-US");
    return String(Number(value.toPrecision(3)));
  };
  const said = (spec, value) => (spec.percent && value != null ? `${value > 0 ? "+" : ""}${value.toFixed(1)} %` : number(value));
  const duration = (seconds) => {
    const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
    const whole = Math.round(seconds);
    const place = Math.max(0, units.findIndex(([, size]) => whole >= size));
    if (whole < 1) return "0 s";
    return units.slice(place, place + 2)
      .map(([name, size], nth) => [Math.floor((nth ? whole % units[place][1] : whole) / size), name])
      .filter(([count], nth) => count || !nth).map((pair) => pair.join(" ")).join(" ");
  };

  // -- the horizontal axis: steps, or what a step is in exposures or seconds

  const state = { smoothing: 0, logarithmic: false, axis: "steps", zoom: null };
  const AXES = { steps: "step", exposures: "exposures", seconds: "time" };

  const axesOf = (line) => (page.parts["data axes_of"] || {})[line] || page.parts["data axes"] || {};
  function along(line, step) {
    const points = axesOf(line)[state.axis];
    if (!points) return step;
    const [steps, values] = points;
    let right = steps.findIndex((each) => each >= step);
    if (right < 0) right = steps.length - 1;  // beyond the last check it goes on as before
    const left = Math.max(0, right - 1);
    if (right === left) return values[right];
    return values[left] + ((step - steps[left]) / (steps[right] - steps[left])) * (values[right] - values[left]);
  }

  function smoothed(values, weight) {
    let mean = 0, scale = 0;
    return values.map((value) => {
      mean = weight * mean + (1 - weight) * value;
      scale = weight * scale + (1 - weight);  // so that the first values count as they are
      return mean / scale;
    });
  }

  const NOISY = 0.9;  // weight of the running mean on curves whose single values say little

  function curvesOf(spec) {
    const curves = [];
    for (const line of spec.lines) {
      const x = state.axis === "steps" ? line.x : line.x.map((step) => along(line.name, step));
      const weight = line.noisy ? Math.max(NOISY, state.smoothing) : state.smoothing;
      const mean = weight && line.y.length > 2 && !line.limit;
      if (mean) curves.push({ ...line, name: `${line.name}, each value`, x, faint: true });
      curves.push({ ...line, x, y: mean ? smoothed(line.y, weight) : line.y });
    }
    return curves;
  }

  // -- charts

  const charts = new Map();

  function range(spec, logarithmic) {
    return (plot, low, high) => {
      if (low == null || high == null) return [0, 1];
      for (const [value] of spec().levels) { low = Math.min(low, value); high = Math.max(high, value); }
      if (logarithmic) return uPlot.rangeLog(low, high, 10, true);
      if (spec().zero) low = Math.min(low, 0);
      const pad = (high - low || Math.abs(high) || 1) * 0.06;
      return [low === 0 ? 0 : low - pad, high + pad];
    };
  }

  const onScale = (plot, value, scale) => plot.valToPos(value, scale, true);

  function under(chart) {  // what lies below the curves
    return (plot) => {
      const { ctx, bbox } = plot, { spec } = chart, across = spec.x === "seen";
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      for (const [low, high, name] of spec.bands) {
        ctx.fillStyle = colour(name);
        ctx.globalAlpha = 0.5;
        const [from, to] = across
          ? [onScale(plot, Math.log10(low), "x"), onScale(plot, Math.log10(high), "x")]
          : [onScale(plot, low, "y"), high == null ? bbox.top : onScale(plot, high, "y")];
        if (across) ctx.fillRect(from, bbox.top, to - from, bbox.height);
        else ctx.fillRect(bbox.left, to, bbox.width, from - to);
        ctx.globalAlpha = 1;
        ctx.fillStyle = colour("faint");
        ctx.font = font(11);
        ctx.textAlign = across ? "center" : "left";
        ctx.textBaseline = "top";
        const space = across ? to - from : from - to, needs = across ? ctx.measureText(name).width : 13 * ratio();
        if (space > needs) {
          if (across) ctx.fillText(name, (from + to) / 2, bbox.top + 5 * ratio());
          else ctx.fillText(name, bbox.left + 6 * ratio(), Math.max(to, bbox.top) + 2 * ratio());
        }
      }
      ctx.restore();
    };
  }

  function over(chart) {  // levels, marks and bars
    return (plot) => {
      const { ctx, bbox } = plot, { spec } = chart;
      ctx.save();
      ctx.lineWidth = 1.5 * ratio();
      ctx.font = `bold ${font(11)}`;
      for (const [left, right, count] of spec.bars) {
        const [from, to] = [left, right].map((each) => onScale(plot, Math.log10(each), "x"));
        const top = onScale(plot, count, "y");
        ctx.fillStyle = colour("train_eval");
        ctx.fillRect(from, top, Math.max(2, to - from - 1), onScale(plot, 0, "y") - top);
      }
      ctx.setLineDash([4 * ratio(), 3 * ratio()]);
      for (const [value, name, words] of spec.levels) {
        const y = onScale(plot, value, "y");
        if (!(y >= bbox.top && y <= bbox.top + bbox.height)) continue;
        ctx.strokeStyle = ctx.fillStyle = colour(name);
        ctx.beginPath();
        ctx.moveTo(bbox.left, y);
        ctx.lineTo(bbox.left + bbox.width, y);
        ctx.stroke();
        ctx.textAlign = "left";
        ctx.textBaseline = "bottom";
        if (words) ctx.fillText(words, bbox.left + 4 * ratio(), y - 2 * ratio());
      }
      spec.marks.forEach(([step, name, words, line], nth) => {
        const x = onScale(plot, along(line || spec.lines[0]?.name, step), "x");
        if (!(x >= bbox.left && x <= bbox.left + bbox.width)) return;
        ctx.strokeStyle = ctx.fillStyle = colour(name);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        const place = (x - bbox.left) / bbox.width;
        ctx.textAlign = place < 0.25 ? "left" : place > 0.75 ? "right" : "center";
        ctx.textBaseline = "bottom";
        ctx.fillText(words, x, bbox.top - (2 + 13 * nth) * ratio());
      });
      ctx.restore();
    };
  }

  const ratio = () => uPlot.pxRatio;
  const font = (size) => `${size * ratio()}px system-ui, sans-serif`;
  const size = (node) => ({
    width: Math.max(200, node.clientWidth),
    height: phone.matches ? 230 : node.closest(".full") ? 340 : 240,
  });

  function axis(side, more) {
    return {
      stroke: () => colour("ink"), font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
      grid: { stroke: () => colour("grid"), width: 1 }, ticks: { stroke: () => colour("grid"), width: 1, size: 4 },
      side, ...more,
    };
  }

  function nearest(plot, series, at) {  // curves have values at steps of their own
    const values = plot.data[series];
    if (at == null || values[at] != null) return at;
    for (let away = 1; away < values.length; away++) {
      if (values[at - away] != null) return at - away;
      if (values[at + away] != null) return at + away;
    }
    return at;
  }

  const canBeLogarithmic = (spec, curves) => curves.length > 0
    && curves.every((line) => line.y.every((value) => value > 0)) && spec.levels.every(([value]) => value > 0);

  function options(chart, curves, node) {
    const { spec } = chart;
    const logarithmic = state.logarithmic && canBeLogarithmic(spec, curves);
    const seen = spec.x === "seen";
    const ticks = [0.5, 1, 5, 10, 50, 100, 1000, 10000, 100000];
    const ends = seen ? [spec.bands[0][0], spec.bands.at(-1)[1]].map(Math.log10) : null;
    return {
      ...size(node),
      padding: [10 + 13 * spec.marks.length, 12, 0, 0],
      cursor: {
        y: false, dataIdx: nearest, drag: { x: !seen, y: false, dist: 4 }, focus: { prox: 24 },
        ...(seen ? {} : { sync: { key: "steps", scales: ["x", null], setSeries: false } }),
      },
      focus: { alpha: 0.35 },
      legend: { live: true, markers: { width: 3 } },
      scales: {
        x: { time: false, ...(seen ? { range: () => ends } : {}) },
        y: { distr: logarithmic ? 3 : 1, range: range(() => chart.spec, logarithmic) },
      },
      axes: [
        axis(2, seen
          ? {
            splits: () => ticks.map(Math.log10).filter((at) => at <= ends[1]), label: "times seen", labelSize: 18, size: 32,
            values: (plot, at) => at.map((each) => (each < 0 ? "0" : number(10 ** each))),
          }
          : {
            label: AXES[state.axis], labelSize: 18, size: 32,
            values: (plot, at) => at.map(state.axis === "seconds" ? duration : number),
          }),
        axis(3, { size: (plot, values) => 14 + 7 * Math.max(2, ...(values || []).map((each) => (each || "").length)),
          values: (plot, at) => at.map((each) => (each == null ? "" : number(each))) }),
      ],
      series: [
        {
          label: seen ? "times seen" : AXES[state.axis],
          value: (plot, at) => (at == null ? "–" : seen ? number(10 ** at) : state.axis === "seconds" ? duration(at) : number(at)),
        },
        ...curves.map((line) => ({
          label: line.name, stroke: () => colour(line.colour), width: line.faint ? 1 : line.dashed ? 1.5 : 2,
          dash: line.dashed ? [5, 4] : undefined, alpha: line.faint ? 0.4 : 1, spanGaps: true,
          points: { show: !line.faint && !line.limit && line.x.length <= 40, size: 5, fill: () => colour(line.colour) },
          value: (plot, value, nth) => said(chart.spec, value ?? chart.curves[nth - 1]?.y.at(-1)),
        })),
        ...(seen ? [{ label: "videos", paths: () => null, points: { show: false }, value: (plot, value) => number(value) }] : []),
      ],
      hooks: {
        drawClear: [under(chart)],
        draw: [over(chart)],
        setSelect: [(plot) => {
          if (!seen && plot.select.width > 4) {
            state.zoom = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
            showZoom();
          }
        }],
      },
    };
  }

  function dataOf(spec, curves) {
    if (spec.x === "seen") {
      return [spec.bars.map(([left, right]) => (Math.log10(left) + Math.log10(right)) / 2), spec.bars.map((bar) => bar[2])];
    }
    return curves.length ? uPlot.join(curves.map((line) => [line.x, line.y])) : [[], []];
  }

  function draw(key) {
    const node = document.querySelector(`.plot[data-chart="${CSS.escape(key)}"]`);
    const spec = page.parts[`chart ${key}`];
    let chart = charts.get(key);
    if (!node || !spec) { chart?.plot?.destroy(); charts.delete(key); return; }
    if (!chart) charts.set(key, chart = {});
    chart.spec = spec;
    const curves = chart.curves = curvesOf(spec);
    const look = JSON.stringify([curves.map((line) => [line.name, line.colour, line.x.length <= 40]), state.logarithmic && canBeLogarithmic(spec, curves),
      state.axis, dark.matches, spec.marks.length, spec.x === "seen" && spec.bands, phone.matches]);
    const data = dataOf(spec, curves);
    const drawn = spec.lines.length || spec.bars.length;
    if (chart.plot && chart.look === look && drawn) {
      const { root } = chart.plot;
      if (root.parentNode !== node) {  // the section was written anew
        if (root.parentNode) resized.unobserve(root.parentNode);
        node.append(root);
        resized.observe(node);
      }
      chart.plot.setData(data);
    } else {
      chart.plot?.destroy();
      node.replaceChildren();
      chart.plot = drawn ? new uPlot(options(chart, curves, node), data, node) : null;
      chart.look = look;
      resized.observe(node);
    }
    if (state.zoom && chart.plot && spec.x !== "seen") chart.plot.setScale("x", { min: state.zoom[0], max: state.zoom[1] });
    const latest = spec.lines.map((line) => `${line.name} ${said(spec, line.y.at(-1))}`).join(", ");
    const drawing = node.querySelector(".u-wrap");
    drawing?.setAttribute("role", "img");
    drawing?.setAttribute("aria-label", latest ? `${spec.title}: ${latest}` : spec.title);
    for (const name of node.querySelectorAll(".u-legend .u-series:not(:first-child) th")) {
      name.tabIndex = 0;
      name.onkeydown = (event) => { if (event.key === "Enter") name.click(); };
    }
  }

  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (!target.isConnected) { resized.unobserve(target); continue; }
      const plot = charts.get(target.dataset.chart)?.plot, wanted = size(target);
      if (plot && (plot.width !== wanted.width || plot.height !== wanted.height)) plot.setSize(wanted);
    }
  });
  const drawAll = () => Object.keys(page.parts).filter((name) => name.startsWith("chart "))
    .forEach((name) => draw(name.slice(6)));

  // -- the controls of all charts

  function showZoom() { const button = byId("whole"); if (button) button.hidden = !state.zoom; }

  function offerAxes() {
    const select = byId("axis");
    if (!select) return;
    const every = Object.values(page.parts["data axes_of"] || { run: page.parts["data axes"] || {} });
    for (const name of ["exposures", "seconds"]) {
      const offered = every.every((axes) => axes[name]), there = select.querySelector(`[value=${name}]`);
      if (offered && !there) select.append(make("option", AXES[name], { value: name }));
      if (!offered && there) there.remove();
    }
  }

  function controls() {
    if (!byId("controls")) return;
    byId("controls").onsubmit = (event) => event.preventDefault();
    byId("smoothing").oninput = (event) => {
      state.smoothing = Number(event.target.value);
      byId("smoothed").textContent = state.smoothing.toFixed(2);
      drawAll();
    };
    byId("logarithmic").onchange = (event) => { state.logarithmic = event.target.checked; drawAll(); };
    byId("axis").onchange = (event) => { state.axis = event.target.value; state.zoom = null; showZoom(); drawAll(); };
    byId("whole").onclick = () => { state.zoom = null; showZoom(); drawAll(); };
    document.addEventListener("dblclick", (event) => {
      if (event.target.closest(".plot")) { state.zoom = null; showZoom(); drawAll(); }
    });
  }

  // -- samples by prompt and step

  const KINDS = { prompt: "your own prompt", train: "prompt of a training clip", val: "prompt of a validation clip" };
  const chosen = { row: 0, step: Infinity };
  const rowsOf = () => (page.parts["data samples"] || []).filter((row) => row.shots.length);
  const stepsOf = () => [...new Set(rowsOf().flatMap((row) => row.shots.map((shot) => shot.step)))].sort((a, b) => a - b);
  const shotAt = (row, step) => row.shots.filter((shot) => shot.step <= step).at(-1) || row.shots[0];

  function play(video, nth) {
    const source = page.parts["data videos"][nth];
    if (video.getAttribute("src") !== source) {
      video.src = source;
      if (still.matches) video.autoplay = false;
    }
  }

  function showSample() {
    const rows = rowsOf(), steps = stepsOf();
    if (!rows.length || !byId("viewer")) return;
    const last = steps.length - 1;
    if (chosen.step >= steps[last]) chosen.step = Infinity;  // it follows the newest
    const at = Math.max(0, steps.filter((step) => step <= chosen.step).length - 1);
    chosen.row = Math.min(chosen.row, rows.length - 1);
    const row = rows[chosen.row], shot = shotAt(row, steps[at]);
    byId("sample-prompt").textContent = row.prompt;
    play(byId("sample-video"), shot.video);
    const kind = KINDS[row.kind === "audit" ? row.side : row.kind];
    byId("sample-words").textContent = [`step ${shot.step}`, kind, shot.kept && "the weights that are kept"].filter(Boolean).join("; ");
    byId("near-figure").hidden = shot.near == null;
    if (shot.near != null) {
      play(byId("near-video"), shot.near);
      const far = shot.ratio == null ? "" : `, at ${shot.ratio.toFixed(2)} of its distance to the nearest clip of another recording`;
      byId("near-words").textContent = `nearest clip of this prompt: ${shot.nearest}${far}`;
    }
    Object.assign(byId("sample-step"), { max: last, value: at });
    byId("sample-at").textContent = steps[at];
    const strip = byId("sample-strip");
    while (strip.children.length > rows.length) strip.lastChild.remove();
    rows.forEach((each, nth) => {
      let button = strip.children[nth];
      if (!button) {
        button = make("button", "", { type: "button", className: "thumb" });
        button.setAttribute("role", "option");
        button.append(Object.assign(document.createElement("video"), { loop: true, muted: true, autoplay: !still.matches, playsInline: true }), make("span", ""));
        button.onclick = () => { chosen.row = nth; showSample(); };
        strip.append(button);
      }
      button.setAttribute("aria-selected", nth === chosen.row);
      play(button.firstChild, shotAt(each, steps[at]).video);
      button.lastChild.textContent = each.prompt;
      button.title = each.prompt;
    });
  }

  function viewer() {
    const node = byId("viewer");
    if (!node || node.dataset.ready) return showSample();
    node.dataset.ready = "yes";
    byId("sample-step").oninput = (event) => { chosen.step = stepsOf()[event.target.value]; showSample(); };
    node.addEventListener("click", (event) => { if (!event.target.closest("video, input")) node.focus({ preventScroll: true }); });
    node.addEventListener("keydown", (event) => {
      const steps = stepsOf(), at = Number(byId("sample-step").value), count = rowsOf().length;
      const moves = {
        ArrowLeft: () => { chosen.step = steps[Math.max(0, at - 1)]; },
        ArrowRight: () => { chosen.step = steps[Math.min(steps.length - 1, at + 1)]; },
        ArrowUp: () => { chosen.row = (chosen.row + count - 1) % count; },
        ArrowDown: () => { chosen.row = (chosen.row + 1) % count; },
        " ": () => {
          const pause = !byId("sample-video").paused;
          node.querySelectorAll("video").forEach((video) => (pause ? video.pause() : video.play().catch(() => {})));
        },
      };
      if (!moves[event.key] || event.target.tagName === "VIDEO") return;
      event.preventDefault();
      moves[event.key]();
      showSample();
    });
    showSample();
  }

  // -- clips of the data

  function find() {
    const wanted = (byId("find")?.value || "").toLowerCase();
    for (const row of document.querySelectorAll("#clips tr:not(:first-child)")) {
      row.hidden = !row.classList.contains("shown") && !row.textContent.toLowerCase().includes(wanted);
    }
  }

  document.addEventListener("input", (event) => { if (event.target.id === "find") find(); });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.play");
    if (!button) return;
    const row = button.closest("tr"), open = row.nextElementSibling;
    if (open?.classList.contains("shown")) { open.remove(); button.textContent = "▶"; return; }
    const cell = Object.assign(document.createElement("td"), { colSpan: 6 });
    const video = Object.assign(document.createElement("video"), { controls: true, autoplay: true, loop: true, muted: true, playsInline: true });
    video.onerror = () => video.replaceWith(make("p", "The file is not there any more, or is of a kind that this browser cannot play.", { className: "words" }));
    video.src = button.dataset.source;
    cell.append(video);
    const shown = Object.assign(document.createElement("tr"), { className: "shown" });
    shown.append(cell);
    row.after(shown);
    button.textContent = "◼";
  });

  // -- what changes while the page is open

  const waiting = new Map();  // sections that somebody is using

  function busy(node) { return node.querySelector("tr.shown, input[type=checkbox]:checked") || node.querySelector("input[type=search]:focus"); }

  function replace(id, html) {
    let node = byId(id);
    if (!node) {
      node = Object.assign(document.createElement("section"), { id });
      document.querySelector("footer").before(node);
    }
    if (busy(node)) { waiting.set(id, html); return; }
    waiting.delete(id);
    const opened = new Map([...node.querySelectorAll("details[id]")].map((each) => [each.id, each.open]));
    const sought = node.querySelector("#find")?.value;
    const scrolled = [...node.querySelectorAll(".tall, .log")].map((each) => each.scrollTop);
    node.innerHTML = html;
    for (const [name, open] of opened) { const each = byId(name); if (each) each.open = open; }
    node.querySelectorAll(".tall, .log").forEach((each, nth) => { each.scrollTop = scrolled[nth] || 0; });
    if (sought) { byId("find").value = sought; find(); }
    if (id === "log") end();
    calm(node);
    for (const plot of node.querySelectorAll(".plot")) draw(plot.dataset.chart);
  }

  function calm(node) {  // nothing moves by itself for those who asked for that
    if (still.matches) node.querySelectorAll("video[autoplay]").forEach((video) => { video.autoplay = false; video.pause(); });
  }

  function end() { const log = document.querySelector(".log"); if (log) log.scrollTop = log.scrollHeight; }

  function take(changed) {
    // A folder that has become a run, or a page that has got its first chart, has other controls.
    const charted = Object.keys(changed).some((name) => name.startsWith("chart "));
    if ("data kind" in changed || (charted && !byId("controls"))) return location.reload();
    for (const [name, value] of Object.entries(changed)) {
      if (value === null) delete page.parts[name]; else page.parts[name] = value;
    }
    if ("title" in changed) document.title = changed.title;
    for (const [name, value] of Object.entries(changed)) {
      if (!name.startsWith("section ")) continue;
      if (value === null) byId(name.slice(8))?.remove(); else replace(name.slice(8), value);
    }
    for (const name of Object.keys(changed)) if (name.startsWith("chart ")) draw(name.slice(6));
    if ("data axes" in changed || "data axes_of" in changed) { offerAxes(); drawAll(); }
    viewer();
  }

  const PATIENCE = 2000, HIDDEN = 15000;  // milliseconds between two questions
  let version = page.version;

  async function ask() {
    let pause = document.hidden ? HIDDEN : PATIENCE;
    try {
      const began = performance.now();
      const address = `${page.updates}${page.updates.includes("?") ? "&" : "?"}version=${encodeURIComponent(version)}`;
      const answer = await fetch(address, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const found = await answer.json();
      version = found.version;
      take(found.parts);
      for (const [id, html] of waiting) replace(id, html);
      byId("lost").hidden = true;
      pause = Math.max(pause, 20 * (performance.now() - began));  // of the training's machine a twentieth of one core
    } catch (error) {
      byId("lost").hidden = false;
      pause = 5 * PATIENCE;
    }
    setTimeout(ask, pause);
  }

  for (const query of [dark, phone]) query.addEventListener("change", drawAll);
  calm(document);
  controls();
  offerAxes();
  drawAll();
  viewer();
  end();
  if (page.updates) setTimeout(ask, PATIENCE);
})();
