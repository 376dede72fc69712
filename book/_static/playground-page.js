/* The page of the playground: settings, their form in the address, drawing, and what is shown. The arithmetic is in
   playground.js. */
"use strict";
(() => {
  const P = window.playground, root = document.getElementById("pg"), $ = (id) => document.getElementById(`pg-${id}`);
  const packed = JSON.parse($("data").textContent), base = P.unpack(packed);
  const SIDE = 28, PIXELS = SIDE * SIDE, SLICE = 30; // milliseconds of counting before the page may react

  // --- 1. Settings: their defaults, what is allowed, and the address ----------------------------------------------

  const whole = (low, high) => (text) => (/^\d+$/.test(text) && +text >= low && +text <= high ? +text : undefined);
  const among = (...names) => (text) => names.find((name) => String(name) === text);
  const percent = (text) => (/^\d+(\.\d+)?$/.test(text) && +text >= 5 && +text <= 300 ? +text : undefined);
  const layerNames = (text) => {
    const names = text.split(",").filter(Boolean);
    return names.every((name) => base.some((layer) => layer.name === name)) ? names : undefined;
  };
  const rule = among("minmax", "percentile", "free"), yes = among(0, 1);
  const FIELDS = {
    w: [8, whole(2, 8)], a: [8, whole(2, 8)], scale: ["tensor", among("tensor", "channel", "group")],
    group: [16, (text) => (groupProblem(text) ? undefined : +text)], act: ["affine", among("affine", "symmetric")],
    wr: ["minmax", rule], wv: [100, percent], ar: ["minmax", rule], av: [100, percent], float: [[], layerNames],
    huge: [0, yes], skip: [0, yes], acc: [32, among(32, 16)], eq: [0, yes], digit: [0, whole(0, packed.test.labels.length - 1)],
  };
  const defaults = () => Object.fromEntries(Object.entries(FIELDS).map(([key, [start]]) => [key, start]));

  /* Why a size of groups cannot be used; a row that is no longer than the group is one group. */
  function groupProblem(text) {
    if (!/^\d+$/.test(text) || +text < 1) return "A group needs a whole number of weights.";
    const most = Math.max(...base.map((layer) => layer.row));
    if (+text > most) return `No channel has more than ${most} weights.`;
    const bad = base.find((layer) => layer.row > +text && layer.row % +text !== 0);
    return bad ? `${text} does not divide the ${bad.row} weights of a channel of ${bad.name}.` : "";
  }

  const isHeading = () => Boolean(document.getElementById(location.hash.slice(1))); // a link within the page

  /* Those who pass an address on may write its commas as %2C. */
  function decoded(part) {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  }

  function readAddress() {
    const settings = defaults(), strange = [];
    for (const part of isHeading() ? [] : location.hash.slice(1).split("&").filter(Boolean)) {
      const [key, text = ""] = decoded(part).split("=");
      const value = Object.hasOwn(FIELDS, key) ? FIELDS[key][1](text) : undefined;
      if (value === undefined) strange.push(part.slice(0, 40));
      else settings[key] = value;
    }
    for (const kind of ["w", "a"]) { // beyond 100 there is no value to read: the range would not be a number
      const key = `${kind}v`, value = settings[key];
      if (settings[`${kind}r`] !== "percentile" || (value >= 90 && value <= 100)) continue;
      strange.push(`${key}=${value}`);
      settings[key] = FIELDS[key][0];
    }
    const words = strange.length ? `Not understood in the address: ${strange.join(", ")}. It is left out. ` : "";
    return [settings, words];
  }

  function writeAddress() {
    const start = defaults(), parts = Object.keys(FIELDS).filter((key) => String(s[key]) !== String(start[key]));
    const hash = parts.map((key) => `${key}=${s[key]}`).join("&");
    if (location.hash.slice(1) !== hash) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  // --- 2. Digits: unpacked from one picture, or drawn -------------------------------------------------------------

  /* A network's input: values 0 to 1, and the 0 that lies outside the picture. */
  const input = (bytes) => Float64Array.from({ length: PIXELS + 1 }, (_, i) => (i < PIXELS ? bytes[i] / 255 : 0));

  /* Digits lie side by side in one picture, `columns` in a row. */
  async function unpackDigits({ picture, columns, count, sum }) {
    const image = new Image();
    image.src = picture;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, image.width, image.height);
    const found = Array.from({ length: count }, (_, n) => {
      const left = (n % columns) * SIDE, top = Math.floor(n / columns) * SIDE;
      return Uint8Array.from({ length: PIXELS }, (_, i) =>
        data[4 * ((top + Math.floor(i / SIDE)) * image.width + left + (i % SIDE))]);
    });
    const total = found.reduce((all, bytes) => bytes.reduce((some, value) => some + value, all), 0);
    if (total !== sum) throw new Error("this browser changes the pixels that a page reads");
    return found;
  }

  /* What the network sees of a drawing: as in its training digits, at most 20 pixels large, its weight in the middle. */
  function centred(bytes) {
    let sum = 0, sx = 0, sy = 0, left = SIDE, right = -1, top = SIDE, bottom = -1;
    bytes.forEach((value, i) => {
      const x = i % SIDE, y = Math.floor(i / SIDE);
      if (!value) return;
      (sum += value), (sx += x * value), (sy += y * value);
      (left = Math.min(left, x)), (right = Math.max(right, x)), (top = Math.min(top, y)), (bottom = Math.max(bottom, y));
    });
    if (!sum) return null;
    const zoom = Math.min(20 / (Math.max(right - left, bottom - top) + 1), 2);
    const at = (x, y) => (x < 0 || y < 0 || x >= SIDE || y >= SIDE ? 0 : bytes[y * SIDE + x]);
    return Uint8Array.from({ length: PIXELS }, (_, i) => {
      const x = (i % SIDE - 13.5) / zoom + sx / sum, y = (Math.floor(i / SIDE) - 13.5) / zoom + sy / sum;
      const u = Math.floor(x), v = Math.floor(y), h = x - u, w = y - v;
      const upper = at(u, v) * (1 - h) + at(u + 1, v) * h, lower = at(u, v + 1) * (1 - h) + at(u + 1, v + 1) * h;
      return Math.round(upper * (1 - w) + lower * w);
    });
  }

  // --- 3. State, and what follows from it -------------------------------------------------------------------------

  let s, digits, inputs, calibration, drawing = null, note = "", lost = [], run = 0, timer = 0, pen = null, cursor = null, left = false;
  const nets = new Map(); // float networks by what was done to them, with what calibration saw and what they answer

  function network() {
    const key = `${s.huge} ${s.eq}`;
    if (!nets.has(key)) {
      const net = P.variant(base, s, packed.huge);
      nets.set(key, { net, seen: P.calibrate(net, calibration), answers: [] });
    }
    return nets.get(key);
  }

  const best = (logits) => logits.indexOf(Math.max(...logits));
  const shown = (value, places) => (Number.isFinite(value) ? value.toFixed(places).replace("-", "−") : "–");

  /* Called for each change; of many fast ones only the last is computed. */
  function changed() {
    clearTimeout(timer);
    $("copied").textContent = "";
    timer = setTimeout(update);
    root.dataset.counting = run++;
  }

  function update() {
    const { net, seen, answers } = network(), model = P.quantize(net, seen, s), mine = ++run;
    const decibels = P.sqnr(net, model, seen), bytes = net.map((layer, i) => P.bytesOf(layer, model.layers[i], s));
    const dead = net.filter((_, i) => !model.layers[i].float && model.layers[i].codes.every((code) => !code));
    const worst = decibels.indexOf(Math.min(...decibels)), own = drawing && centred(drawing);
    const pixels = drawing ? own : digits[s.digit];
    showControls(dead);
    showLayers(net, model, decibels, bytes, worst);
    showHistogram(net, model, worst);
    paint();
    $("size").textContent = `${shown(bytes.reduce((a, b) => a + b) / 1000, 1)} kB`;
    $("worst").textContent = Number.isFinite(decibels[worst]) ? `${shown(decibels[worst], 1)} dB, ${net[worst].name}` : "all in float";
    const words = showAnswers(pixels && [P.run(net, null, input(pixels)), P.run(net, model, input(pixels))], dead);
    writeAddress();
    count(mine, net, model, answers, words);
  }

  /* Counts right answers, some digits at a time, until another change begins a count of its own. */
  function count(mine, net, model, answers, words) {
    const started = performance.now(), tally = { float: 0, int8: 0, won: 0 };
    let n = 0;
    lost = [];
    $("top-int8").textContent = "…";
    (function some() {
      if (mine !== run) return;
      for (const until = performance.now() + SLICE; n < digits.length && performance.now() < until; n++) {
        const label = +packed.test.labels[n], image = inputs[n];
        answers[n] ??= best(P.run(net, null, image));
        const float = answers[n] === label, int8 = best(P.run(net, model, image)) === label;
        (tally.float += float), (tally.int8 += int8), (tally.won += int8 && !float);
        if (float && !int8) lost.push(n);
      }
      if (n < digits.length) return setTimeout(some);
      delete root.dataset.counting;
      root.dataset.milliseconds = Math.round(performance.now() - started);
      const share = (right) => `${shown((100 * right) / digits.length, 1)} %`;
      $("lost").disabled = !lost.length;
      $("top-float").textContent = share(tally.float);
      $("top-int8").textContent = `${share(tally.int8)} (${lost.length} lost, ${tally.won} won)`;
      $("said").textContent = `${note}${words} Right answers of ${digits.length} test digits: float ${tally.float}, quantized ${tally.int8}.`;
      note = "";
    })();
  }

  // --- 4. What is shown -------------------------------------------------------------------------------------------

  function showControls(dead) {
    for (const control of root.querySelectorAll("[data-key]")) {
      const { key, set } = control.dataset;
      if (control.type === "checkbox") control.checked = s.float.includes(control.value);
      else if (control.dataset.back) control.setAttribute("aria-pressed", String(s[key]) === set);
      else if (set !== undefined) continue;
      else if (control !== document.activeElement || control.type !== "number") control.value = s[key];
      const said = $(`${key}-said`);
      if (said && control.type === "range") said.textContent = key === "w" || key === "a" ? `${s[key]} bits` : `${s[key]} %`;
    }
    const broken = root.querySelectorAll("[data-note][aria-pressed=true]");
    $("broken").textContent = [...broken].map((button) => button.dataset.note).join(" ");
    $("group-label").hidden = s.scale !== "group";
    if (s.scale !== "group" || document.activeElement !== $("group")) $("group-said").textContent = ""; // the field has s.group again
    for (const kind of ["w", "a"]) {
      const slider = $(`${kind}v`), cut = s[`${kind}r`] === "percentile";
      Object.assign(slider, cut ? { min: 90, max: 100, step: 0.1 } : { min: 5, max: 300, step: 5 });
      slider.value = s[`${kind}v`];
      $(`${kind}v-label`).hidden = s[`${kind}r`] === "minmax";
      $(`${kind}v-rule`).textContent = cut ? "Percentile" : "Share of the largest value";
    }
    $("dead").textContent = dead.length
      ? `Every weight of ${dead.map((layer) => layer.name).join(", ")} has the code 0: the answer no longer depends on the digit.` : "";
  }

  function showAnswers(pair, dead) {
    const from = pair ? Math.min(...pair[0], ...pair[1]) : 0, to = pair ? Math.max(...pair[0], ...pair[1]) : 1;
    for (const [i, kind] of ["float", "int8"].entries()) {
      for (let digit = 0; digit < 10; digit++) {
        const cell = $(`${kind}-${digit}`), value = pair ? pair[i][digit] : NaN;
        cell.lastChild.textContent = shown(value, 2);
        cell.firstChild.style.width = `${pair ? (100 * (value - from)) / (to - from || 1) : 0}%`;
        cell.classList.toggle("pg-best", Boolean(pair) && digit === best(pair[i]));
      }
      $(`${kind}-answer`).textContent = pair ? best(pair[i]) : "–";
    }
    const what = drawing ? "Your drawing" : `Test digit ${s.digit}, a ${packed.test.labels[s.digit]}`;
    $("what").textContent = pair ? `${what}: float says ${best(pair[0])}, quantized says ${best(pair[1])}.` : "The box is empty.";
    if (!pair) return "The box is empty: draw a digit, and both networks answer.";
    const kept = drawing && left ? "What was drawn outside the box does not count. " : "";
    return `${kept}Float says ${best(pair[0])}, quantized says ${best(pair[1])}.${dead.length ? ` ${$("dead").textContent}` : ""}`;
  }

  function showLayers(net, model, decibels, bytes, worst) {
    net.forEach((layer, i) => {
      const row = $(`layer-${layer.name}`), used = new Set(model.layers[i].codes).size;
      row.cells[2].textContent = model.layers[i].float ? "–" : `${used} of ${2 ** s.w - 1}`;
      row.cells[3].textContent = model.layers[i].float ? "–" : `${shown(decibels[i], 1)} dB${i === worst ? ", worst" : ""}`;
      row.cells[4].textContent = `${shown(bytes[i] / 1000, 2)} kB`;
      row.classList.toggle("pg-best", i === worst && !model.layers[i].float);
    });
  }

  /* Weights above the line, what their codes stand for below it: two histograms of the same numbers. */
  function showHistogram(net, model, worst) {
    const chosen = net.findIndex((layer) => layer.name === $("layer").value), i = chosen < 0 ? worst : chosen, layer = net[i], q = model.layers[i];
    const given = q.codes.map((code, n) => code * q.scale[Math.floor((n * q.groups) / layer.row)]);
    const end = layer.weight.reduce((most, value) => Math.max(most, Math.abs(value)), 0), bins = 121;
    const counts = (values) => {
      const found = new Array(bins).fill(0);
      values.forEach((value) => found[Math.max(0, Math.min(bins - 1, Math.floor(((value / end + 1) / 2) * bins)))]++);
      return found;
    };
    const bars = (found, sign) => found.map((n, bin) =>
      n ? `M${bin * 4 + 2} 75v${(-sign * Math.max(1, (70 * Math.sqrt(n)) / Math.sqrt(Math.max(...found)))).toFixed(1)}` : "").join("");
    $("bars-float").setAttribute("d", bars(counts(layer.weight), 1));
    $("bars-int8").setAttribute("d", q.float ? "" : bars(counts(given), -1));
    const zeros = q.codes.reduce((n, code) => n + (code === 0), 0), share = shown((100 * zeros) / q.codes.length, 0);
    const words = q.float
      ? `${layer.name} stays in float: ${q.codes.length} weights from ${shown(-end, 2)} to ${shown(end, 2)}.`
      : `${layer.name}: ${q.codes.length} weights between ${shown(-end, 2)} and ${shown(end, 2)}; ${share} % of them have the code 0.`;
    $("histogram").setAttribute("aria-label", `Histogram. ${words}`);
    $("histogram-said").textContent = words;
    [$("from").textContent, $("to").textContent] = [shown(-end, 2), shown(end, 2)];
  }

  function paint() {
    const context = $("box").getContext("2d"), image = context.createImageData(SIDE, SIDE);
    (drawing || digits[s.digit]).forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
    if (cursor) image.data.set([230, 159, 0, 255], 4 * (cursor[1] * SIDE + cursor[0]));
    context.putImageData(image, 0, 0);
  }

  // --- 5. Drawing with mouse, finger, pen or keyboard -------------------------------------------------------------

  function ink(x, y) {
    drawing ??= new Uint8Array(PIXELS);
    drawing.forEach((value, i) => {
      const distance = Math.hypot(i % SIDE + 0.5 - x, Math.floor(i / SIDE) + 0.5 - y);
      drawing[i] = Math.max(value, Math.min(255, Math.max(0, 255 * (2 - distance))));
    });
  }

  function stroke(event) {
    const { left: x0, top: y0, width, height } = $("box").getBoundingClientRect();
    const to = [((event.clientX - x0) / width) * SIDE, ((event.clientY - y0) / height) * SIDE], from = pen || to;
    if (Math.min(...to) < 0 || Math.max(...to) >= SIDE) left = true;
    const steps = Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])) || 1;
    for (let i = 1; i <= steps; i++) ink(...from.map((value, axis) => value + ((to[axis] - value) * i) / steps));
    pen = to;
    changed();
  }

  const clear = () => ((drawing = new Uint8Array(PIXELS)), (left = false), changed());
  const take = (digit) => ((drawing = null), (s.digit = (digit + digits.length) % digits.length), changed());

  function key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own: Alt and an arrow go back
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    cursor ??= [14, 6];
    if (move) cursor = cursor.map((value, axis) => Math.max(0, Math.min(SIDE - 1, value + move[axis])));
    else if (event.key === "Delete" || event.key === "Backspace") clear();
    else if (event.key !== " ") return;
    if (event.key === " " || (move && event.shiftKey)) ink(cursor[0] + 0.5, cursor[1] + 0.5), changed();
    const inked = drawing && drawing[cursor[1] * SIDE + cursor[0]] > 127;
    $("cursor").textContent = `Column ${cursor[0] + 1}, row ${cursor[1] + 1}: ${inked ? "inked" : "empty"}.`;
    event.preventDefault();
    paint();
  }

  /* A page that is opened from disk, or not over https, may not write to the clipboard. */
  async function copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      $("copied").textContent = "The link to these settings is copied.";
    } catch {
      $("copied").textContent = `This browser lets no page copy: ${location.href}`;
    }
  }

  // --- 6. Beginning -----------------------------------------------------------------------------------------------

  function bind() {
    const box = $("box");
    box.addEventListener("pointerdown", (event) => {
      box.setPointerCapture(event.pointerId);
      if (!drawing) clear();
      (pen = null), (cursor = null), stroke(event);
    });
    box.addEventListener("pointermove", (event) => pen && stroke(event));
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, () => (pen = null));
    box.addEventListener("keydown", key);
    box.addEventListener("blur", () => ((cursor = null), ($("cursor").textContent = ""), paint()));
    $("copy").addEventListener("click", copyLink);
    $("clear").addEventListener("click", clear);
    $("previous").addEventListener("click", () => take(s.digit - 1));
    $("next").addEventListener("click", () => take(s.digit + 1));
    $("lost").addEventListener("click", () => take(lost.find((n) => n > s.digit) ?? lost[0] ?? s.digit));
    $("layer").addEventListener("input", changed);
    $("reduce").addEventListener("click", () => {
      for (const [name, bits] of Object.entries(packed.reduced)) s[name] = Math.min(s[name], bits);
      changed();
    });
    $("reset").addEventListener("click", () => ((s = { ...defaults(), digit: s.digit }), changed()));
    for (const control of root.querySelectorAll("[data-key]"))
      control.addEventListener(control.dataset.set === undefined ? "input" : "click", () => turned(control));
    addEventListener("hashchange", () => {
      if (isHeading()) return;
      if (/[#&]digit=/.test(location.hash)) drawing = null; // the link names a digit to look at
      [s, note] = readAddress();
      changed();
    });
  }

  function turned(control) {
    const { key: name, set } = control.dataset;
    if (control.type === "checkbox") {
      s.float = base.map((layer) => layer.name).filter((layer) => (layer === control.value ? control.checked : s.float.includes(layer)));
    } else {
      const text = set !== undefined && String(s[name]) === set && control.dataset.back ? control.dataset.back : set ?? control.value;
      const value = FIELDS[name][1](text);
      if (name === "group") $("group-said").textContent = value === undefined ? `${groupProblem(text)} ${s.group} stays.` : "";
      if (name === "digit") note = value === undefined ? `The test digits are 0 to ${digits.length - 1}. ` : "";
      if (value === undefined) return name === "digit" && changed();
      s[name] = value;
      if (name === "digit") drawing = null;
      if (name === "wr" || name === "ar") s[`${name[0]}v`] = { minmax: 100, percentile: 99, free: 60 }[value];
    }
    changed();
  }

  async function begin() {
    try {
      if (!document.createElement("canvas").getContext("2d")) throw new Error("this browser has no canvas to draw on");
      digits = await unpackDigits(packed.test);
      calibration = (await unpackDigits(packed.calibration)).map(input);
    } catch (error) {
      $("why").textContent = `The playground cannot run here: ${error.message}. The picture shows what it does.`;
      return;
    }
    inputs = digits.map(input);
    Object.assign(P, { base, packed, digits, calibration, defaults }); // for the tests, and for the curious
    $("app").hidden = false;
    $("still").hidden = true;
    [s, note] = readAddress();
    bind();
    changed();
  }
  begin();
})();
