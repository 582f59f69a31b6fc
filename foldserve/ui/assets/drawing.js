// Draws white on black, as the images of MNIST are. Each stroke that ends is sent to be classified.
const canvas = element.querySelector('canvas');
const note = element.querySelector('[data-pen]');
const context = canvas.getContext('2d', { willReadFrequently: true });
const WIDTH = 20, STEP = 8, WAIT_MS = 400;
const pen = { x: 140, y: 140, down: false };
let isInverted = false, isEmpty = true, last = null, timer = null, under = null;

const ink = () => (isInverted ? '#000000' : '#ffffff');
const paper = () => (isInverted ? '#ffffff' : '#000000');

function clear() {
  context.fillStyle = paper();
  context.fillRect(0, 0, canvas.width, canvas.height);
  under = null;
  isEmpty = true;
}

function line(from, to) {
  context.strokeStyle = ink();
  context.lineWidth = WIDTH;
  context.lineCap = context.lineJoin = 'round';
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x, to.y);
  context.stroke();
  isEmpty = false;
}

function send() {
  clearTimeout(timer);
  hidePen();
  if (!isEmpty) props.value = canvas.toDataURL('image/png');
  if (canvas.matches(':focus-visible')) showPen();
}

function sendSoon() {
  clearTimeout(timer);
  timer = setTimeout(send, WAIT_MS);
}

// The pen's place is shown while the keyboard is used, and is no part of the picture.
function showPen() {
  under = context.getImageData(0, 0, canvas.width, canvas.height);
  context.strokeStyle = '#ff6e00';
  context.lineWidth = pen.down ? 4 : 2;
  context.beginPath();
  context.arc(pen.x, pen.y, WIDTH / 2, 0, 7);
  context.stroke();
}

function hidePen() {
  if (under) context.putImageData(under, 0, 0);
  under = null;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) * canvas.width) / box.width,
    y: ((event.clientY - box.top) * canvas.height) / box.height,
  };
}

canvas.addEventListener('pointerdown', (event) => {
  hidePen();
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  line(last, last);
});
canvas.addEventListener('pointermove', (event) => {
  if (!last) return;
  hidePen();
  const next = place(event);
  line(last, next);
  last = next;
});
for (const name of ['pointerup', 'pointercancel']) {
  canvas.addEventListener(name, () => {
    if (last) send();
    last = null;
  });
}

const MOVES = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
canvas.addEventListener('keydown', (event) => {
  const move = MOVES[event.key];
  if (!move && event.key !== ' ') return;
  event.preventDefault();
  hidePen();
  if (move) {
    const from = { ...pen };
    pen.x = Math.min(canvas.width, Math.max(0, pen.x + move[0]));
    pen.y = Math.min(canvas.height, Math.max(0, pen.y + move[1]));
    if (pen.down) line(from, pen);
  } else {
    pen.down = !pen.down;
    note.textContent = pen.down ? 'The pen is down.' : 'The pen is up.';
    if (pen.down) line(pen, pen);
  }
  showPen();
  if (pen.down || event.key === ' ') sendSoon();
});
canvas.addEventListener('focus', () => {
  if (canvas.matches(':focus-visible')) showPen();
});
canvas.addEventListener('blur', hidePen);

element.querySelector('[data-tool=clear]').addEventListener('click', clear);
element.querySelector('[data-tool=invert]').addEventListener('click', (event) => {
  isInverted = !isInverted;
  event.currentTarget.setAttribute('aria-pressed', String(isInverted));
  hidePen();
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < image.data.length; i += 4) {
    for (let c = 0; c < 3; c += 1) image.data[i + c] = 255 - image.data[i + c];
  }
  context.putImageData(image, 0, 0);
  send();
});
clear();
