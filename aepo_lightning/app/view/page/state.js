// What is looked at. It stands in the address, so that a link leads back to it.

const START = { q: '', leaf: 0, seg: '', tab: 'path', color: 'entropy', sort: 'surprise', filter: 'all', find: '' };
const NUMBERS = ['leaf'];
let state = { ...START };

// An entry that a table has itself: the words of a link may be anything.
const entry = (table, name, otherwise) => table[Object.hasOwn(table, name) ? name : otherwise];

function readAddress() {
  const found = new URLSearchParams(location.hash.slice(1));
  const next = { ...START };
  for (const name of Object.keys(START)) {
    if (found.has(name)) next[name] = NUMBERS.includes(name) ? Number(found.get(name)) || 0 : found.get(name);
  }
  return next;
}

function writeAddress() {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== START[name]) words.set(name, value);
  }
  history.replaceState(null, '', `#${words}`);
}

// Change what is looked at; the parts of the page that show it are drawn again.
function look(changes) {
  const before = state;
  state = { ...state, ...changes };
  writeAddress();
  return drawAll(before);
}
