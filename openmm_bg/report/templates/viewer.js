// Draws the structures of the element "scene" on the canvas "viewer". Plain JavaScript that loads nothing.
(function () {
  "use strict";
  const scene = JSON.parse(document.getElementById("scene").textContent);
  const canvas = document.getElementById("viewer"), pen = canvas.getContext("2d");
  const buttons = document.getElementById("structures-shown");
  const elements = { N: "#3050c8", O: "#c8302a", S: "#b08a00" };
  let turn = [1, 0, 0, 0, 1, 0, 0, 0, 1], zoom = 1, sticks = true;  // turn: a rotation, row by row
  const shown = new Set(scene.shown);

  let reach = 1;  // of what is shown first: all structures are drawn to this scale
  for (const { positions } of scene.shown.map((index) => scene.structures[index]))
    for (let i = 0; i < positions.length; i += 3) reach = Math.max(reach, Math.hypot(...positions.slice(i, i + 3)));

  function residueColor(residue) {  // from blue at the first residue to red at the last
    const share = residue / Math.max(1, scene.residues.length - 1);
    return `hsl(${Math.round(225 * (1 - share))} 75% 45%)`;
  }

  function rotate(x) {
    const y = new Array(x.length);
    for (let i = 0; i < x.length; i += 3)
      for (let row = 0; row < 3; row++)
        y[i + row] = turn[3 * row] * x[i] + turn[3 * row + 1] * x[i + 1] + turn[3 * row + 2] * x[i + 2];
    return y;
  }

  function lines(structure, faint) {  // half bonds: from an atom to the middle, in the colour of the atom
    const x = rotate(structure.positions), found = [];
    const add = (pairs, width, color) => {
      for (const pair of pairs)
        for (const [from, to] of [pair, [pair[1], pair[0]]]) {
          const a = x.slice(3 * from, 3 * from + 3), b = x.slice(3 * to, 3 * to + 3);
          const middle = a.map((value, axis) => 0.5 * (value + b[axis]));
          found.push({ a, middle, depth: 0.5 * (a[2] + middle[2]), width, color: faint ? "#8b95a1" : color(from) });
        }
    };
    add(scene.backbone, 46, (atom) => residueColor(scene.residue[atom]));
    if (sticks) add(scene.side_chains, 18, (atom) => elements[scene.element[atom]] || residueColor(scene.residue[atom]));
    return found;
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const scale = zoom * ratio * 0.47 * Math.min(width, height) / reach;
    const all = [...shown].flatMap((index) => lines(scene.structures[index], index === 0 && shown.size > 1));
    pen.lineCap = "round";
    for (const line of all.sort((first, second) => first.depth - second.depth)) {
      pen.globalAlpha = 0.35 + 0.65 * Math.min(1, Math.max(0, 0.5 + 0.5 * line.depth / reach));
      pen.strokeStyle = line.color;
      pen.lineWidth = Math.max(1, line.width * scale);
      pen.beginPath();
      pen.moveTo(0.5 * canvas.width + scale * line.a[0], 0.5 * canvas.height - scale * line.a[1]);
      pen.lineTo(0.5 * canvas.width + scale * line.middle[0], 0.5 * canvas.height - scale * line.middle[1]);
      pen.stroke();
    }
  }

  function spin(right, down) {  // by angles about the vertical and the horizontal axis of the screen
    const [c, s, e, f] = [Math.cos(right), Math.sin(right), Math.cos(down), Math.sin(down)];
    const by = [c, 0, s, f * s, e, -f * c, -e * s, f, e * c], before = turn;
    turn = before.map((_, i) => [0, 1, 2].reduce((sum, k) => sum + by[3 * Math.floor(i / 3) + k] * before[3 * k + i % 3], 0));
    draw();
  }

  function button(text, pressed, onclick) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-pressed", pressed);
    made.onclick = () => { made.setAttribute("aria-pressed", onclick()); draw(); };
    buttons.append(made);
  }

  scene.structures.forEach((structure, index) => {
    const apart = index ? `, ${structure.deviation.toFixed(2)} nm` : "";
    button(structure.name + apart, shown.has(index), () => {
      if (!shown.delete(index)) shown.add(index);
      return shown.has(index);
    });
  });
  button("Side chains", sticks, () => (sticks = !sticks));

  canvas.onpointerdown = (event) => canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = (event) => { if (event.buttons) spin(0.01 * event.movementX, 0.01 * event.movementY); };
  canvas.onwheel = (event) => { event.preventDefault(); zoom *= Math.exp(-0.001 * event.deltaY); draw(); };
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (step) { event.preventDefault(); spin(...step); }
  };
  window.addEventListener("resize", draw);
  draw();
})();
