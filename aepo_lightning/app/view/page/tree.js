// The tree of a question: time runs to the right, a line for each trajectory.

const ROW = 26;
const MARGIN = { left: 14, right: 210, top: 12 };
const LABEL_CHARACTERS = 16;

const rewardOf = (leaf) => (leaf.reward && leaf.reward.scored ? leaf.reward.value : null);
const reached = (tree, id) => mean(tree.below[id].map((leaf) => rewardOf(tree.leaves[leaf])).filter((value) => value !== null));

function layOut(tree, width) {
  const deepest = most(tree.depth, 1);
  const column = Math.max(22, Math.min(110, (width - MARGIN.left - MARGIN.right) / (deepest + 0.5)));
  const places = tree.leaves.map((leaf, index) => index).sort((a, b) => comparePaths(tree.leaves[a], tree.leaves[b]));
  const row = [];
  places.forEach((leaf, place) => { row[leaf] = place; });
  const y = tree.segments.map((segment, id) => MARGIN.top + ROW * (0.5 + least(tree.below[id].map((leaf) => row[leaf]), Infinity)));
  const x = tree.depth.map((depth) => MARGIN.left + column * (depth + 0.5));
  return { x, y, column, width: MARGIN.left + MARGIN.right + column * (deepest + 0.5), height: MARGIN.top * 2 + ROW * tree.leaves.length, row };
}

function comparePaths(one, other) {
  const end = Math.min(one.path.length, other.path.length);
  for (let i = 0; i < end; i++) if (one.path[i] !== other.path[i]) return one.path[i] - other.path[i];
  return one.path.length - other.path.length;
}

function segmentLabel(tree, id) {
  const segment = tree.segments[id];
  if (segment.source === 'prompt') return 'prompt';
  if (segment.source === 'policy') return `turn of the policy, ${segment.tokens.length} tokens`;
  return `result of ${brief(segment.call?.tool || 'a tool')}, ${segment.result?.status}`;
}

function pressed(act) {
  return {
    tabindex: 0, role: 'button', onclick: act,
    onkeydown: (event) => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); event.stopPropagation(); act(); } },
  };
}

const decisionKind = (decision) => decision.opened ? 'opened' : decision.problem ? 'refused' : decision.wanted ? 'unfunded'
  : decision.penalised ? 'penalised' : 'alone';

function drawSegment(tree, plan, id, chosen) {
  const { x, y, column } = plan;
  const segment = tree.segments[id];
  const share = tree.below[id].length / tree.leaves.length;
  const isOn = chosen.path.includes(id);
  const begin = segment.parent === null ? x[id] - column / 2 : x[segment.parent];
  const from = segment.parent === null ? y[id] : y[segment.parent];
  const bend = begin + Math.min(16, column * 0.4);
  const line = from === y[id] ? `M${begin},${y[id]}H${x[id]}` : `M${begin},${from}C${bend},${from} ${begin},${y[id]} ${bend},${y[id]}H${x[id]}`;
  const reward = reached(tree, id);
  const edge = draw('path', {
    d: line, class: `edge ${segment.source}${isOn ? ' on' : ''}`, 'stroke-width': 1.5 + 7 * share,
    style: reward === null ? {} : { '--good': goodness(reward) },
  });
  const act = () => look({ seg: String(id), leaf: isOn ? state.leaf : tree.below[id][0], ...(decision ? { tab: 'branch' } : state.tab === 'branch' ? { tab: 'path' } : {}) });
  const decision = tree.decisionAt.get(id);
  const isPicked = state.seg === String(id);
  const node = draw('g', {
    class: `node ${segment.source}${isOn ? ' on' : ''}${isPicked ? ' picked' : ''}${decision ? ` decision ${decisionKind(decision)}` : ''}${isFailed(segment) ? ' failed' : ''}`,
    transform: `translate(${x[id]},${y[id]})`, 'data-segment': id, 'aria-current': isPicked ? 'true' : null,
    'aria-label': segmentLabel(tree, id) + (decision ? `, ${WHAT[decisionKind(decision)]}` : ''), ...pressed(act),
  });
  node.append(draw('circle', { r: 10, class: 'touch' }));
  if (segment.source === 'tool') node.append(draw('path', { d: 'M0,-5L5,0L0,5L-5,0Z', class: 'shape' }));
  else node.append(draw('circle', { r: 3.5, class: 'shape' }));
  if (decision) node.append(draw('circle', { r: 8, class: 'ring' }));
  return [edge, node];
}

const isFailed = (segment) => segment.result && !['ok', 'empty'].includes(segment.result.status);

// What a trajectory is called: its reward, its answer or how it ended, and the same in words.
function leafTexts(leaf, index) {
  const reward = rewardOf(leaf);
  const label = leaf.stop === 'unfinished' ? 'no reward yet' : reward === null ? 'no reward' : show(reward, 2);
  const answer = brief(leaf.reward?.answer || '', LABEL_CHARACTERS);
  const ending = leaf.stop === 'eos' ? answer : leaf.stop === 'unfinished' ? '' : leaf.stop;
  const name = `#${index} ${label} ${ending}`.trim() + (leaf.stop === 'unfinished' ? ': trajectory of a tree that is not finished' : `: trajectory, reward ${label}, ended by ${leaf.stop}`);
  return { label, ending, name };
}

function drawLeaf(tree, plan, index) {
  const leaf = tree.leaves[index];
  const right = plan.width - MARGIN.right + 6;
  const y = plan.y[leaf.segment];
  const reward = rewardOf(leaf);
  const { label, ending, name } = leafTexts(leaf, index);
  return draw('g', { class: `leaf${index === state.leaf ? ' on' : ''}`, 'data-leaf': index, 'aria-label': name, 'aria-current': index === state.leaf ? 'true' : null, ...pressed(() => look({ leaf: index, seg: '', tab: state.tab === 'branch' ? 'path' : state.tab })) },
    draw('rect', { x: right - 4, y: y - ROW / 2 + 2, width: MARGIN.right - 4, height: ROW - 4, rx: 5, class: 'touch' }),
    draw('line', { x1: plan.x[leaf.segment], x2: right, y1: y, y2: y, class: 'lead' }),
    draw('rect', { x: right, y: y - 7, width: 14, height: 14, rx: 4, class: reward === null ? 'value unknown' : 'value', style: { '--good': goodness(reward) } }),
    draw('text', { x: right + 20, y: y + 4 }, draw('tspan', { class: 'number' }, `#${index} `), draw('tspan', { class: 'reward' }, label), draw('tspan', {}, ` ${ending}`)));
}

function drawTree(tree) {
  const pane = document.getElementById('tree');
  const left = pane.scrollLeft;
  const plan = layOut(tree, pane.clientWidth || 900);
  const chosen = tree.leaves[state.leaf];
  const parts = tree.segments.map((segment, id) => drawSegment(tree, plan, id, chosen));
  const picture = draw('svg', { width: plan.width, height: plan.height, role: 'group', 'aria-label': 'tree of trajectories' },
    draw('g', {}, parts.map((part) => part[0])), tree.leaves.map((leaf, index) => drawLeaf(tree, plan, index)),
    draw('g', {}, parts.map((part) => part[1])));
  pane.replaceChildren(picture);
  pane.scrollLeft = left;
}
