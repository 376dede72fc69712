/* The playground: a small network that is quantized and run in integers, in this page.

   Read it from the top: the network, ranges and codes, an int8 layer, and what breaks and mends it. The chapter does the
   same arithmetic in PyTorch, in the same order; a test compares the two number by number. This file knows nothing of the
   page: its controls and drawings are in playground-page.js.

   JavaScript has one kind of number, a 64-bit float. It holds every integer up to 2^53 exactly, so sums of products of
   codes are exact, as in an int32 accumulator: here they stay below 2^26. */
"use strict";
window.playground = (() => {
  // --- 1. The network: convolutions, each perhaps with a ReLU behind it -------------------------------------------

  /* A float16 from its bits: one of sign, five of exponent, ten of fraction. */
  function half(bits) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    return (bits >> 15 ? -1 : 1) * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  }

  /* Where in its input each place of a layer's output reads, as one table, so that one loop serves every kind of
     convolution. What lies outside the picture reads the last entry of the input, which is always 0. */
  function readsOf({ inputs, outputs, kernel, stride, padding, size, out, depthwise }) {
    const reads = [], outside = inputs * size * size;
    for (let own = 0; own < (depthwise ? outputs : 1); own++)
      for (let place = 0; place < out * out; place++)
        for (let plane = 0; plane < (depthwise ? 1 : inputs); plane++)
          for (let k = 0; k < kernel * kernel; k++) {
            const y = Math.floor(place / out) * stride + Math.floor(k / kernel) - padding;
            const x = (place % out) * stride + (k % kernel) - padding;
            const inside = Math.min(x, y) >= 0 && Math.max(x, y) < size;
            reads.push(inside ? ((own + plane) * size + y) * size + x : outside);
          }
    return Int32Array.from(reads);
  }

  function unpack({ layers, weights }) {
    const bytes = Uint8Array.from(atob(weights), (letter) => letter.charCodeAt(0));
    const numbers = Float64Array.from(new Uint16Array(bytes.buffer), half);
    let at = 0;
    const take = (count) => numbers.slice(at, (at += count));
    return layers.map((layer) => {
      const row = (layer.depthwise ? 1 : layer.inputs) * layer.kernel ** 2; // weights of one output channel
      const weight = take(layer.outputs * row);
      return { ...layer, row, places: layer.out ** 2, reads: readsOf(layer), weight, bias: take(layer.outputs) };
    });
  }

  const clamp = (value, low, high) => (value < low ? low : value > high ? high : value);

  /* The sums of products of a layer, one for each output and each group of its weights: what a place reads is gathered
     once, then multiplied with the weights of each output that reads it. An accumulator of 16 bits stays at the end of
     its range whenever a product would carry it further. */
  function sums(layer, x, weight, groups, bits) {
    const { row, places, reads, outputs, depthwise } = layer, size = row / groups, end = 2 ** (bits - 1);
    const found = new Float64Array(outputs * places * groups), read = new Float64Array(row);
    for (let n = 0; n < reads.length / row; n++) {
      for (let k = 0; k < row; k++) read[k] = x[reads[n * row + k]];
      const place = n % places, own = Math.floor(n / places); // of a depthwise layer: the one output that reads this
      for (let o = own; o < (depthwise ? own + 1 : outputs); o++)
        for (let g = 0; g < groups; g++) {
          const first = g * size, last = first + size, from = o * row;
          let sum = 0;
          if (bits === 32) for (let k = first; k < last; k++) sum += read[k] * weight[from + k];
          else for (let k = first; k < last; k++) sum = clamp(sum + read[k] * weight[from + k], -end, end - 1);
          found[(o * places + place) * groups + g] = sum;
        }
    }
    return found;
  }

  function floatLayer(layer, x) {
    const found = sums(layer, x, layer.weight, 1, 32), out = new Float64Array(found.length + 1);
    found.forEach((sum, i) => {
      const value = sum + layer.bias[Math.floor(i / layer.places)];
      out[i] = layer.relu ? Math.max(value, 0) : value;
    });
    return out;
  }

  // --- 2. Ranges, scales and codes --------------------------------------------------------------------------------

  const TINY = 2 ** -16; // the scale of a range in which there is nothing

  /* Math.round takes halves upwards. PyTorch takes them to the even neighbour, as processors do. */
  function roundEven(value) {
    const up = Math.round(value);
    return up - value === 0.5 && up % 2 !== 0 ? up - 1 : up;
  }

  /* The end of a range, from its values in ascending order. */
  function largest(ordered, rule, percent) {
    const last = ordered.length - 1;
    if (rule === "percentile") return ordered[Math.floor((percent / 100) * last)];
    return ordered[last] * (rule === "free" ? percent / 100 : 1);
  }

  /* Signed, symmetric codes of a layer's weights, with one scale for the tensor, each channel or each group. */
  function quantizeWeight(layer, s) {
    const { weight, row, outputs } = layer, high = 2 ** (s.w - 1) - 1;
    const size = { tensor: weight.length, channel: row, group: Math.min(s.group, row) }[s.scale];
    const groups = row / Math.min(size, row), scale = new Float64Array(outputs * groups);
    const codes = new Float64Array(weight.length);
    for (let start = 0; start < weight.length; start += size) {
      const part = weight.subarray(start, start + size);
      const step = largest(Float32Array.from(part, Math.abs).sort(), s.wr, s.wv) / high || TINY;
      part.forEach((value, i) => (codes[start + i] = clamp(roundEven(value / step), -high, high)));
      scale.fill(step, (start * groups) / row, ((start + size) * groups) / row);
    }
    return { codes, scale, groups, scales: weight.length / size };
  }

  /* Scale, zero point and codes of a layer's input, from the values that calibration saw, in ascending order. */
  function inputRange(ordered, s) {
    const high = 2 ** s.a - 1, last = ordered.length - 1, middle = 2 ** (s.a - 1) - 1;
    if (s.skip) return { scale: 1, zero: 0, low: 0, high }; // what PyTorch takes for an observer that saw nothing
    const cut = s.ar === "percentile" ? ordered[last - Math.floor((s.av / 100) * last)] : ordered[0];
    const bottom = Math.min(s.ar === "free" ? cut * (s.av / 100) : cut, 0);
    const top = Math.max(largest(ordered, s.ar, s.av), 0);
    if (s.act === "symmetric") return { scale: Math.max(top, -bottom) / middle || TINY, zero: 0, low: -middle, high: middle };
    const scale = (top - bottom) / high || TINY;
    return { scale, zero: roundEven(-bottom / scale), low: 0, high };
  }

  /* Everything that an int8 model has: the codes of its weights and biases, and the ranges of its inputs. */
  function quantize(net, seen, s) {
    const layers = net.map((layer, i) => {
      const input = inputRange(seen.ordered[i], s), weight = quantizeWeight(layer, s);
      const step = (o) => input.scale * weight.scale[o * weight.groups];
      const bias = layer.bias.map((value, o) => clamp(roundEven(value / step(o)), -(2 ** 31), 2 ** 31 - 1));
      return { ...weight, bias, input, float: s.float.includes(layer.name) };
    });
    return { layers, accumulator: s.acc };
  }

  // --- 3. Integers ------------------------------------------------------------------------------------------------

  /* Codes less their zero point: so that 0 stands for 0, also outside the picture. */
  const codeOf = (value, { scale, zero, low, high }) => clamp(roundEven(value / scale) + zero, low, high) - zero;

  /* Sums of integers, plus the bias, times what brings them to the scale of the next layer's input (requantization). If
     the next layer is a float one, or there is none, the result is a real number. */
  function int8Layer(layer, q, codes, target, bits) {
    const { groups, input, scale } = q, { places, outputs, relu } = layer, found = sums(layer, codes, q.codes, groups, bits);
    const out = new Float64Array(outputs * places + 1), wanted = target || { scale: 1 };
    const factor = scale.map((step) => (input.scale * step) / wanted.scale);
    for (let o = 0, i = 0; o < outputs; o++)
      for (let place = 0; place < places; place++, i++) {
        let total = (found[i * groups] + q.bias[o]) * factor[o * groups];
        for (let g = 1; g < groups; g++) total += found[i * groups + g] * factor[o * groups + g];
        if (target) total = clamp(roundEven(total) + target.zero, target.low, target.high) - target.zero;
        out[i] = relu && total < 0 ? 0 : total;
      }
    return out;
  }

  /* The logits of one image; `model` is null for the float network. `keep` collects what each layer gives. */
  function run(net, model, image, keep) {
    let x = image, coded = false;
    net.forEach((layer, i) => {
      const q = model && model.layers[i], next = model && model.layers[i + 1];
      const target = next && !next.float ? next.input : null;
      if (!q || q.float) x = floatLayer(layer, x);
      else x = int8Layer(layer, q, coded ? x : x.map((value) => codeOf(value, q.input)), target, model.accumulator);
      coded = Boolean(q && !q.float && target);
      if (keep) keep.push(x);
    });
    return x.subarray(0, x.length - 1);
  }

  /* Calibration: what each layer reads and gives for some images, in float. */
  function calibrate(net, images) {
    const reads = net.map(() => []), gives = net.map(() => []);
    for (const image of images) {
      const keep = [image];
      run(net, null, image, keep);
      net.forEach((_, i) => (reads[i].push(keep[i]), gives[i].push(keep[i + 1])));
    }
    const joined = (parts) => Float32Array.from(parts.flatMap((part) => [...part.subarray(0, part.length - 1)]));
    return { reads, gives, ordered: reads.map((parts) => joined(parts).sort()) };
  }

  /* Decibels of each int8 layer alone: its inputs are exact, its output is compared with that of the float layer. */
  function sqnr(net, model, seen) {
    return net.map((layer, i) => {
      const q = model.layers[i];
      let signal = 0, noise = 0;
      seen.reads[i].forEach((input, n) => {
        const codes = input.map((value) => codeOf(value, q.input));
        const given = int8Layer(layer, q, codes, null, model.accumulator), exact = seen.gives[i][n];
        for (let k = 0; k < exact.length; k++) (signal += exact[k] ** 2), (noise += (exact[k] - given[k]) ** 2);
      });
      return q.float ? Infinity : 10 * Math.log10(signal / noise);
    });
  }

  /* Codes in whole bytes, a float32 for each scale, an int32 for each bias, five bytes for the input's range. */
  const bytesOf = (layer, q, s) =>
    q.float
      ? 4 * (layer.weight.length + layer.outputs)
      : Math.ceil((layer.weight.length * s.w) / 8) + 4 * q.scales + 4 * layer.outputs + 5;

  // --- 4. Breaking and mending ------------------------------------------------------------------------------------

  /* Channel `c` of a layer gives 1/factor, and channel `c` of the next one takes factor times as much: behind a ReLU, or
     behind nothing, the float network computes the same. */
  function shift(one, next, c, factor) {
    for (let k = 0; k < one.row; k++) one.weight[c * one.row + k] /= factor;
    one.bias[c] /= factor;
    next.weight.forEach((_, i) => (channelOf(next, i) === c ? (next.weight[i] *= factor) : 0));
  }
  const channelOf = (layer, i) => Math.floor(layer.depthwise ? i / layer.row : (i % layer.row) / layer.kernel ** 2);
  const magnitude = (layer, keep) => layer.weight.reduce((m, value, i) => (keep(i) ? Math.max(m, Math.abs(value)) : m), 0);

  /* The network with one channel of a huge range, or equalized (Nagel et al. 2019), or both. */
  function variant(net, { huge, eq }, { channel, factor }) {
    const copy = net.map((layer) => ({ ...layer, weight: layer.weight.slice(), bias: layer.bias.slice() }));
    if (huge) shift(copy[0], copy[1], channel, factor);
    for (let i = 0; eq && i < 2 * (copy.length - 1); i++) {
      const one = copy[i % (copy.length - 1)], next = copy[(i % (copy.length - 1)) + 1];
      for (let c = 0; c < one.outputs; c++) {
        const before = magnitude(one, (n) => Math.floor(n / one.row) === c);
        const after = magnitude(next, (n) => channelOf(next, n) === c);
        if (before && after) shift(one, next, c, Math.sqrt(before / after));
      }
    }
    return copy;
  }

  return { unpack, run, quantize, calibrate, sqnr, bytesOf, variant, roundEven };
})();
