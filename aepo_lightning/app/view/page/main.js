// The page: its frame, what is drawn again when something changes, and news of a run that is still going on.

const TABS = {
  path: ['Trajectory', drawPath], branch: ['Branch decision', drawBranch], siblings: ['Siblings', drawSiblings],
  timeline: ['Timeline', drawTimeline], facts: ['Question', drawFacts],
};
const LIVE_MS = 3000;
let shownTree = null;

function choice(id, label, options, name) {
  return el('label', {}, label, ' ', el('select', { id, onchange: (event) => look({ [name]: event.target.value }) },
    Object.entries(options).map(([value, [text]]) => el('option', { value }, text))));
}

function frame() {
  const help = el('dialog', { id: 'help', 'aria-label': 'keys' }, el('h2', {}, 'Keys'), el('dl', {}, HELP.map(([key, what]) => [el('dt', {}, el('kbd', {}, key)), el('dd', {}, what)])),
    el('form', { method: 'dialog' }, el('button', { onclick: (event) => { event.preventDefault(); help.close(); } }, 'close')));
  const find = el('input', { id: 'find', type: 'search', placeholder: 'search', 'aria-label': 'search questions and answers; Enter looks through all texts',
    oninput: (event) => { deepMatches = null; look({ find: event.target.value }); }, onkeydown: (event) => { if (event.key === 'Enter') searchTexts(); } });
  document.body.append(
    el('header', { id: 'top' }, el('h1', {}, visible(`${head.run} · ${head.name}`)), el('span', { id: 'rollouts' }), el('span', { id: 'news', role: 'status' }), el('span', { id: 'said', class: 'spoken', role: 'status' }),
      el('button', { onclick: changeTheme, title: 't' }, 'dark / light'), el('button', { onclick: () => help.showModal(), title: '?' }, 'keys')),
    el('nav', { id: 'side', 'aria-label': 'questions' }, el('div', { id: 'choices' }, find, choice('filter', 'Show', FILTERS, 'filter'), choice('sort', 'by', SORTS, 'sort'), el('span', { id: 'how-many', role: 'status' })),
      el('div', { id: 'list', tabindex: 0, role: 'region', 'aria-label': 'list of questions' }, el('ol', { id: 'questions' }))),
    el('main', {}, el('h2', { id: 'asked' }), el('div', { id: 'tree', tabindex: 0, role: 'region', 'aria-label': 'tree' }),
      el('div', { id: 'tabs' }, el('div', { role: 'tablist', 'aria-label': 'views' }, Object.entries(TABS).map(([name, [label]]) => el('button', { role: 'tab', id: `tab-${name}`, 'data-tab': name, 'aria-controls': 'detail', onclick: () => look({ tab: name }) }, label))), treeLegend()),
      el('div', { id: 'detail', role: 'tabpanel', tabindex: 0 })), help);
  document.title = plainly(`${head.name} · ${head.run} · aepo-view`);
}

function treeLegend() {
  const kinds = [['opened', 'branched'], ['alone', 'went on alone'], ['penalised', 'kept by the penalty'], ['unfunded', 'not opened']];
  return el('span', { id: 'tree-legend' }, 'after a result: ', kinds.map(([kind, what]) => [el('i', { class: `dot ${kind}` }), el('span', {}, what)]));
}

function drawChoices() {
  for (const name of ['filter', 'sort']) document.getElementById(name).value = state[name];
  const find = document.getElementById('find');
  if (find.value !== state.find) find.value = state.find;
}

async function drawQuestion() {
  const row = head.questions.find((each) => each.id === state.q) || order[0];
  if (!row) { document.getElementById('asked').textContent = head.questions.length ? 'No question fits. Change filter or search.' : 'No turn of any question is on file yet.'; return; }
  state.q = row.id;
  const tree = await treeOf(row);
  if (state.q !== row.id) return; // another one was chosen meanwhile
  shownTree = tree;
  state.leaf = Math.min(Math.max(0, Math.trunc(state.leaf)), tree.leaves.length - 1);
  if (state.seg !== '' && !tree.segments[Number(state.seg)]) state.seg = '';
  document.getElementById('asked').replaceChildren(...visible(row.text || row.id));
  redraw(tree);
  sayWhatIsShown(row, tree);
}

// Keys change what is shown without moving the focus: say it.
function sayWhatIsShown(row, tree) {
  const parts = [brief(row.text || row.id), leafTexts(tree.leaves[state.leaf], state.leaf).name];
  if (state.seg !== '') parts.push(segmentLabel(tree, Number(state.seg)));
  const said = document.getElementById('said');
  if (said.textContent !== parts.join('. ')) said.textContent = parts.join('. ');
}

// Draw the tree and what is known of its parts; the keyboard stays where it was.
function redraw(tree) {
  const node = document.activeElement;
  const pane = node.closest('#tree, #detail');
  const name = ['segment', 'leaf'].find((each) => each in node.dataset);
  drawTree(tree);
  drawTab(tree);
  if (!pane || document.contains(node)) return;
  const same = name ? `#${pane.id} [data-${name}="${node.dataset[name]}"]` : node.id ? `#${node.id}` : null;
  ((same && document.querySelector(same)) || pane).focus({ preventScroll: true });
}

function drawTab(tree) {
  const pane = document.getElementById('detail');
  const name = Object.hasOwn(TABS, state.tab) ? state.tab : 'path';
  for (const each of Object.keys(TABS)) document.getElementById(`tab-${each}`).setAttribute('aria-selected', String(each === name));
  pane.setAttribute('aria-labelledby', `tab-${name}`);
  pane.replaceChildren();
  TABS[name][1](tree, pane);
  document.getElementById(`segment-${state.seg}`)?.scrollIntoView({ block: 'nearest' });
  if (state.seg === '') pane.scrollTop = 0;
}

async function drawAll(before) {
  const isListNew = !before || ['sort', 'filter', 'find'].some((name) => before[name] !== state[name]);
  if (isListNew) {
    drawChoices();
    drawQuestions();
    // A choice that leaves out what was shown shows the first of what it leaves.
    if (before && order.length && !order.some((row) => row.id === state.q)) return look({ q: order[0].id, leaf: 0, seg: '' });
  }
  await drawQuestion();
  markQuestion();
}

// Ask the server that this page came from whether more is there.
async function hearNews() {
  try {
    const answer = await fetch('/rollouts.json', { cache: 'no-store' });
    if (!answer.ok) {
      document.getElementById('news').textContent = `the server cannot say what is there: ${brief(await answer.text())}`;
      setTimeout(hearNews, LIVE_MS);
      return;
    }
    const news = await answer.json();
    const select = el('select', { 'aria-label': 'iteration or benchmark', onchange: (event) => location.assign(`/${encodeURIComponent(event.target.value)}.html`) },
      news.map((each) => el('option', { value: each.name, selected: each.name === head.live.name }, plainly(each.name))));
    const place = document.getElementById('rollouts');
    if (place.dataset.names !== JSON.stringify(news.map((each) => each.name))) {
      place.dataset.names = JSON.stringify(news.map((each) => each.name));
      place.replaceChildren(select);
    }
    const own = news.find((each) => each.name === head.live.name);
    const isNew = own && own.version !== head.live.version;
    document.getElementById('news').replaceChildren(...(isNew ? [el('button', { class: 'fresh', onclick: () => location.reload() }, 'more is there: show it')] : []));
  } catch {
    document.getElementById('news').textContent = 'the server has ended';
    return;
  }
  setTimeout(hearNews, LIVE_MS);
}

async function start() {
  [head, vocabulary] = await Promise.all([unpack('head'), unpack('vocabulary')]);
  head.questions.forEach((row, number) => { row.number = number; });
  frame();
  state = readAddress();
  document.addEventListener('keydown', onKey);
  window.addEventListener('hashchange', () => { state = readAddress(); drawAll(null); });
  window.addEventListener('resize', () => { if (shownTree) redraw(shownTree); });
  await drawAll(null);
  document.documentElement.dataset.ready = 'true';
  performance.mark('ready');
  if (head.live) hearNews();
}

start().catch((error) => document.body.append(el('p', { role: 'alert' }, `The page cannot be drawn: ${error}`)));
