// When the chains of a tree generated, waited for a slot, and had their tools run.

const LANE = 22;

function laneParts(tree, leaf) {
  const parts = [];
  let last = null;
  for (const id of leaf.own) {
    const { span, source, result } = tree.segments[id];
    if (!span) continue;
    if (last !== null && span[0] > last + 1e-4) parts.push(['wait', last, span[0], 'waits']);
    if (source === 'policy') parts.push(['generate', span[0], span[1], 'generates']);
    else {
      const running = span[0] + Math.min(result.queue, span[1] - span[0]);
      const over = Math.min(span[1], running + result.duration);
      parts.push(['wait', span[0], running, 'waits for a slot'], ['call', running, over, `tool: ${result.status}`], ['wait', over, span[1], 'waits for other calls or the loop']);
    }
    last = span[1];
  }
  // Calls of one turn ran side by side: what waited lies below what ran.
  const isWait = ([kind]) => kind === 'wait';
  return [...parts.filter(isWait), ...parts.filter((part) => !isWait(part))].filter(([, from, to]) => to > from);
}

// A lane in words, for those who do not see it.
function laneInWords(parts, leaf, index) {
  const sum = (kind) => parts.filter(([each]) => each === kind).reduce((all, [, from, to]) => all + to - from, 0);
  const name = `Chain of trajectory ${index}, ${leaf.origin}`;
  if (!parts.length) return `${name}: nothing of its own.`;
  const [begin, end] = [least(parts.map(([, from]) => from), Infinity), most(parts.map(([, , to]) => to), 0)];
  return `${name}: from ${seconds(begin)} to ${seconds(end)}, generation ${seconds(sum('generate'))}, tools ${seconds(sum('call'))}.`;
}

function drawTimeline(tree, pane) {
  const lanes = tree.leaves.map((leaf) => laneParts(tree, leaf));
  const ends = lanes.flat().map(([, , to]) => to);
  if (!ends.length) {
    pane.append(absent(tree.unfinished ? 'When things happened is written when a tree is finished.' : 'When things happened is not on record for this tree: it was taken from an older journal, or its times were lost. How long each tool ran stands beside its result.'));
    return;
  }
  const total = most(ends, 0);
  const width = Math.max(480, (pane.clientWidth || 800) - 150);
  const at = (second) => 110 + (width * second) / total;
  const rows = lanes.map((parts, index) => draw('g', { transform: `translate(0,${24 + index * LANE})` },
    draw('text', { x: 4, y: 14, class: index === state.leaf ? 'on' : '' }, `${index} ${tree.leaves[index].origin}`),
    parts.map(([kind, from, to, label]) => draw('rect', { class: kind, x: at(from), y: 3, width: Math.max(1, at(to) - at(from)), height: LANE - 7 }, draw('title', {}, `${label} ${seconds(to - from)}, from ${seconds(from)}`)))));
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => draw('g', {}, draw('line', { x1: at(share * total), x2: at(share * total), y1: 18, y2: 24 + LANE * lanes.length }),
    draw('text', { x: at(share * total), y: 13, 'text-anchor': share === 1 ? 'end' : 'middle' }, seconds(share * total))));
  pane.append(el('p', { class: 'keys' }, el('i', { class: 'generate' }), ' generation ', el('i', { class: 'call' }), ' tool ', el('i', { class: 'wait' }), ' waiting'),
    el('ul', { class: 'spoken' }, lanes.map((parts, index) => el('li', {}, laneInWords(parts, tree.leaves[index], index)))),
    el('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': 'timeline of chains' }, draw('svg', { class: 'timeline', width: width + 130, height: 34 + LANE * lanes.length, role: 'img', 'aria-label': `timeline of ${lanes.length} chains over ${seconds(total)}` }, draw('g', { class: 'ticks' }, ticks), rows)));
}
