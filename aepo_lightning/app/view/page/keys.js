// The keyboard: everything that a click does.

const HELP = [
  ['j, k', 'next, previous question'], ['↓, ↑', 'next, previous trajectory'], ['→, ←', 'next, previous segment; on the tabs, next, previous tab'],
  ['b', 'next branch decision of the trajectory'], ['1 … 5', 'the tabs'], ['c', 'next colouring of tokens'],
  ['/', 'search (Enter looks through all texts)'], ['f, s', 'next filter, next order'], ['t', 'dark or light'], ['?', 'these keys'],
];

function step(values, current, by) {
  const at = values.indexOf(current);
  return values[Math.max(0, Math.min(values.length - 1, at + by))];
}

function turn(values, current) {
  return values[(values.indexOf(current) + 1) % values.length];
}

function act(key, tree) {
  const ids = order.map((row) => row.id);
  const path = tree ? tree.leaves[state.leaf].path.map(String) : [];
  const colors = Object.keys(COLORS).filter((name) => !head.absences[name]);
  const decided = path.filter((id) => tree.decisionAt.has(Number(id)));
  const places = tree ? tree.leaves.map((leaf, index) => index).sort((a, b) => comparePaths(tree.leaves[a], tree.leaves[b])) : [];
  const acts = {
    j: () => look({ q: step(ids, state.q, 1) ?? state.q, leaf: 0, seg: '' }),
    k: () => look({ q: step(ids, state.q, -1) ?? state.q, leaf: 0, seg: '' }),
    ArrowDown: () => look({ leaf: step(places, state.leaf, 1), seg: '' }),
    ArrowUp: () => look({ leaf: step(places, state.leaf, -1), seg: '' }),
    ArrowRight: () => look({ seg: step(path, state.seg, 1), tab: 'path' }),
    ArrowLeft: () => look({ seg: step(path, state.seg, -1), tab: 'path' }),
    b: () => decided.length && look({ seg: turn(decided, state.seg), tab: 'branch' }),
    c: () => look({ color: turn(colors, state.color) }),
    f: () => look({ filter: turn(Object.keys(FILTERS), state.filter) }),
    s: () => look({ sort: turn(Object.keys(SORTS), state.sort) }),
    t: () => changeTheme(),
    '/': () => document.getElementById('find').focus(),
    '?': () => document.getElementById('help').showModal(),
  };
  Object.keys(TABS).forEach((name, index) => { acts[index + 1] = () => look({ tab: name }); });
  return acts[key];
}

const SIDEWAYS = ['ArrowLeft', 'ArrowRight'];

// On the tabs, arrows lead to the next one.
function besideTab(event, tab) {
  const names = Object.keys(TABS);
  const at = names.indexOf(tab.dataset.tab) + (event.key === 'ArrowRight' ? 1 : -1);
  const name = names[(at + names.length) % names.length];
  event.preventDefault();
  look({ tab: name });
  document.getElementById(`tab-${name}`).focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById('help').open) return;
  if (event.target.closest('input, select, textarea')) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  if (SIDEWAYS.includes(event.key)) {
    if (event.target.closest('.wide')) return; // the browser scrolls it
    const tab = event.target.closest('[role=tab]');
    if (tab) return besideTab(event, tab);
  }
  const found = act(event.key, shownTree);
  if (found) { event.preventDefault(); found(); }
}

function changeTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = isDark ? 'light' : 'dark';
}
