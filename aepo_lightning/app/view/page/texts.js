// Elements and texts. Everything that comes from data becomes a text node: nothing here parses markup.

const SVG = 'http://www.w3.org/2000/svg';
const SHOWN_CHARACTERS = 20000;

// Characters that would be invisible, or would reorder what stands around them, and halves of surrogate pairs. What joins
// letters and chooses the look of emoji is part of what is seen.
const HIDDEN = /(?![\t\n\u200c\u200d\ufe0e\ufe0f])[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\ufff9-\ufffb]/gu;

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'style') for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) {
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }
  return node;
}

const el = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
const draw = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

function codeOf(character) {
  return 'U+' + character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0');
}

// A text with hidden characters shown by their numbers.
function visible(text) {
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(HIDDEN)) {
    parts.push(text.slice(from, found.index), el('span', { class: 'hidden-character' }, codeOf(found[0])));
    from = found.index + found[0].length;
  }
  parts.push(text.slice(from));
  return parts.filter((part) => part !== '');
}

const plainly = (text) => text.replace(HIDDEN, codeOf);

// Where to cut a text such that no character is cut.
const endNear = (text, end) => (end < text.length && text.codePointAt(end - 1) > 0xffff ? end + 1 : Math.min(end, text.length));
const brief = (text, most = 80) => plainly(text.slice(0, endNear(text, most)));

// A text of any length: the rest comes when it is asked for.
function longText(text, properties) {
  const node = el('span', { class: 'text', ...properties });
  let shown = 0;
  const more = () => {
    const end = endNear(text, shown + SHOWN_CHARACTERS);
    node.append(...visible(text.slice(shown, end)));
    shown = end;
    if (shown < text.length) {
      const label = `show more (${count(shown)} of ${count(text.length)} characters)`;
      const button = el('button', { class: 'more', onclick: () => { button.remove(); more(); } }, label);
      node.append(button);
    }
  };
  more();
  return node;
}

const count = (number) => number.toLocaleString('en');

function show(number, digits = 4) {
  if (number === null || number === undefined) return '–';
  if (typeof number !== 'number' || Number.isInteger(number)) return String(number);
  const size = Math.abs(number);
  return size !== 0 && size < 10 ** -digits ? number.toExponential(1) : String(+number.toFixed(digits));
}

function seconds(value) {
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  return value < 1 ? `${+(value * 1000).toFixed(1)} ms` : `${+value.toFixed(2)} s`;
}

// What is not known is said to be so.
const absent = (why) => el('p', { class: 'absent' }, why);
