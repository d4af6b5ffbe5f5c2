// Trajectories that go on from one state, side by side, with the first place where they differ.

const COLUMNS = 4;

function tokensAfter(tree, leaf, from) {
  const start = leaf.path.indexOf(from) + 1;
  return leaf.path.slice(start).flatMap((id) => tree.segments[id].tokens.map((token, i) => ({ id, i, token })));
}

function firstDifference(sequences) {
  const end = least(sequences.map((each) => each.length), Infinity);
  for (let place = 0; place < end; place++) if (sequences.some((each) => each[place].token !== sequences[0][place].token)) return place;
  return end;
}

function untilWhere(lengths, place) {
  if (place === 0) return 'They differ from the first token on.';
  if (lengths.every((length) => length === place)) return 'They are the same to their ends.';
  const what = lengths.some((length) => length === place) ? 'then not all go on' : 'then they differ';
  return `The first ${place === 1 ? 'token is' : `${place} tokens are`} the same, ${what}.`;
}

// The point to compare at: what was picked, if trajectories part there, else the last one on the way of the trajectory.
function partingPoint(tree) {
  const picked = Number(state.seg);
  if (state.seg !== '' && tree.children[picked]?.length > 1) return picked;
  return tree.leaves[state.leaf].path.findLast((id) => tree.children[id].length > 1) ?? null;
}

function siblingColumn(tree, index, from, place) {
  const leaf = tree.leaves[index];
  let passed = 0;
  const parts = leaf.path.slice(leaf.path.indexOf(from) + 1).map((id) => {
    const start = passed;
    passed += tree.segments[id].tokens.length;
    return el('div', { class: `piece ${tree.segments[id].source}` }, tokensOf(tree.segments[id], leaf, (i) => (start + i < place ? ' same' : start + i === place ? ' first' : '')));
  });
  const reward = rewardOf(leaf);
  return el('section', { class: `sibling${index === state.leaf ? ' on' : ''}` },
    el('header', {}, el('i', { class: reward === null ? 'mark unknown' : 'mark', style: { '--good': goodness(reward) } }),
      el('button', { class: 'plain', 'data-leaf': index, onclick: () => look({ leaf: index }) }, `trajectory ${index}`), ` reward ${show(reward, 2)}`, leaf.reward?.answer ? el('span', { class: 'notes' }, ' · ', brief(leaf.reward.answer)) : ''),
    ...parts);
}

function drawSiblings(tree, pane) {
  const from = partingPoint(tree);
  if (from === null) { pane.append(absent('No trajectories part on the way of this one.')); return; }
  const own = state.leaf;
  const children = tree.children[from].map((child) => (tree.below[child].includes(own) ? own : tree.below[child][0]));
  const ordered = [...children.filter((leaf) => leaf === own), ...children.filter((leaf) => leaf !== own)];
  const shown = ordered.slice(0, COLUMNS);
  const sequences = shown.map((leaf) => tokensAfter(tree, tree.leaves[leaf], from));
  const place = firstDifference(sequences);
  pane.append(colorChoice(shown.map((leaf) => tree.leaves[leaf])), el('p', {}, `${ordered.length} ways go on from the same state (${segmentLabel(tree, from)}). ${untilWhere(sequences.map((each) => each.length), place)}`,
    ordered.length > COLUMNS ? ` The first ${COLUMNS} are shown; choose another trajectory in the tree to see it.` : ''),
    el('div', { class: 'siblings', style: { '--columns': shown.length } }, shown.map((leaf) => siblingColumn(tree, leaf, from, place))));
}
