// The list of questions: searched, filtered, sorted by surprise.

const ROWS_AT_ONCE = 120;

const rewardsOf = (row) => row.rewards.filter((reward) => reward !== null);
const SORTS = {
  surprise: ['surprise', (a, b) => b.spread - a.spread || (b.shared ?? -1) - (a.shared ?? -1) || b.failures - a.failures],
  shared: ['alike for long, rewards differ', (a, b) => (b.shared ?? -1) - (a.shared ?? -1) || b.spread - a.spread],
  failures: ['failures', (a, b) => b.failures - a.failures || b.spread - a.spread],
  low: ['lowest reward', (a, b) => (mean(rewardsOf(a)) ?? 0) - (mean(rewardsOf(b)) ?? 0)],
  branches: ['branches', (a, b) => b.branches - a.branches || b.spread - a.spread],
  tokens: ['tokens', (a, b) => b.tokens - a.tokens],
  file: ['order of the file', (a, b) => a.number - b.number],
};
const FILTERS = {
  all: ['all questions', () => true],
  mixed: ['rewards differ', (row) => row.spread > 0],
  equal: ['rewards equal', (row) => row.spread === 0 && rewardsOf(row).length > 0],
  wrong: ['none correct', (row) => !row.correct.some(Boolean) && !row.unfinished],
  right: ['all correct', (row) => row.correct.every(Boolean)],
  failed: ['with failures', (row) => row.failures > 0],
  branched: ['with branches', (row) => row.branches > 0],
  penalised: ['penalty decided', (row) => row.penalised > 0],
  unfinished: ['not finished', (row) => row.unfinished],
};
let order = [];
let deepMatches = null; // the words of the last search through all texts, and the numbers of the questions that have them

function textOfRow(row) {
  row.searched ??= [row.id, row.text, ...row.answers, ...row.given].join('\n').toLowerCase();
  return row.searched;
}

function chooseQuestions() {
  const words = state.find.toLowerCase();
  const keep = entry(FILTERS, state.filter, 'all')[1];
  const isFound = (row) => !words || textOfRow(row).includes(words) || (deepMatches?.words === words && deepMatches.rows.has(row.number));
  order = head.questions.filter((row) => keep(row) && isFound(row));
  order.sort((a, b) => entry(SORTS, state.sort, 'surprise')[1](a, b) || a.number - b.number);
}

const scaleOf = (rewards) => [least(rewards, 0), most(rewards, 1e-9)];

// The place of a reward between the worst and the best of the page, for its colour.
function goodness(reward) {
  if (reward === null || reward === undefined) return 'unknown';
  head.scale ??= scaleOf(head.questions.flatMap(rewardsOf));
  const [low, high] = head.scale;
  return `${Math.round((100 * (reward - low)) / (high - low))}%`;
}

function rewardMarks(row) {
  return el('span', { class: 'marks', 'aria-hidden': 'true' }, row.rewards.map((reward) =>
    el('i', reward === null ? { class: 'mark unknown' } : { class: 'mark', style: { '--good': goodness(reward) } })));
}

function questionRow(row) {
  const notes = [row.unfinished ? 'not finished' : `spread ${show(row.spread, 2)}`];
  if (row.shared !== null) notes.push(`alike for ${row.shared} token${row.shared === 1 ? '' : 's'}`);
  if (row.branches) notes.push(`${row.branches} branches`);
  const score = row.unfinished ? 'not finished. ' : `${row.correct.filter(Boolean).length} of ${row.rewards.length} correct. `;
  return el('li', {}, el('button', {
    class: 'question', 'data-id': row.id,
    'aria-current': row.id === state.q ? 'true' : null, onclick: () => look({ q: row.id, leaf: 0, seg: '' }),
  },
  el('span', { class: 'snippet' }, visible(row.text || row.id)),
  rewardMarks(row), el('span', { class: 'spoken' }, score),
  el('span', { class: 'notes' }, notes.join(' · '), row.failures ? el('b', { class: 'failed' }, ` ${row.failures} failed`) : '')));
}

function drawQuestions() {
  chooseQuestions();
  const list = document.getElementById('questions');
  list.replaceChildren();
  let shown = 0;
  const more = () => {
    list.append(...order.slice(shown, shown + ROWS_AT_ONCE).map(questionRow));
    shown = Math.min(order.length, shown + ROWS_AT_ONCE);
  };
  const current = order.findIndex((row) => row.id === state.q);
  do more(); while (shown <= current);
  const pane = document.getElementById('list');
  pane.onscroll = () => { if (shown < order.length && pane.scrollTop + pane.clientHeight > pane.scrollHeight - 600) more(); };
  document.getElementById('how-many').textContent = `${count(order.length)} of ${count(head.questions.length)}`;
}

function markQuestion() {
  for (const button of document.querySelectorAll('#questions .question')) {
    const isCurrent = button.dataset.id === state.q;
    if (isCurrent) { button.setAttribute('aria-current', 'true'); button.scrollIntoView({ block: 'nearest' }); }
    else button.removeAttribute('aria-current');
  }
}

// Look through the texts of all trees, piece by piece, so that the page stays responsive.
async function searchTexts() {
  const words = state.find.toLowerCase();
  const status = document.getElementById('how-many');
  if (!words) return;
  const rows = new Set();
  deepMatches = { words, rows };
  for (const row of head.questions) {
    if (state.find.toLowerCase() !== words) return;
    const tree = await treeOf(row);
    const texts = tree.segments.map((segment) => (segment.result ? segment.result.text : textOf(segment)));
    if (texts.some((text) => text.toLowerCase().includes(words))) rows.add(row.number);
    if (row.number % 50 === 0) {
      status.textContent = `searched ${count(row.number)} of ${count(head.questions.length)}`;
      await new Promise((resume) => setTimeout(resume));
    }
  }
  await drawAll({ ...state, find: null });
}
