// A trajectory from prompt to answer: turns, tool calls with their results, and the decisions between them.

function fact(label, value) {
  return value === null || value === undefined || value === '' ? null : [el('dt', {}, label), el('dd', {}, value)];
}

function rewardFacts(leaf) {
  const reward = leaf.reward;
  const facts = [fact('ended by', leaf.stop === 'unfinished' ? null : leaf.stop), fact('began as', leaf.origin), fact('chain', leaf.chain), fact('tool calls', leaf.calls)];
  if (reward) {
    facts.unshift(fact('reward', reward.scored ? show(reward.value, 3) : 'could not be computed'),
      fact('correct', reward.correct ? 'yes' : 'no'), fact('well formed', reward.formed ? 'yes' : 'no'), fact('F1', show(reward.f1, 3)),
      fact('answer', reward.answer && longText(reward.answer)), fact('reason', reward.reason && longText(reward.reason)),
      ...Object.entries(reward.terms).map(([name, value]) => fact(name, show(value, 3))));
  }
  if (leaf.advantage !== null) facts.push(fact('advantage, before any shaping', show(leaf.advantage, 3)));
  return el('dl', { class: 'facts' }, facts);
}

function callParts(segment) {
  const { call, result } = segment;
  const isBad = isFailed(segment);
  const notes = [`ran ${seconds(result.duration)}`];
  if (result.queue >= 0.0005) notes.push(`waited ${seconds(result.queue)}`);
  if (result.attempts > 1) notes.push(`${result.attempts} attempts`);
  for (const [name, text] of [['cached', 'from the cache'], ['shared', 'shared with another chain'], ['truncated', 'cut to the limit'], ['program_timeout', 'the program was stopped']]) {
    if (result[name]) notes.push(text);
  }
  const named = call.arguments && Object.entries(call.arguments).map(([name, value]) => el('div', {}, el('b', {}, longText(name)), ': ', longText(value)));
  return [
    el('div', { class: 'call' }, el('span', { class: 'tool-name' }, longText(call.tool || 'no tool')), named || longText(call.text),
      call.problem ? el('span', { class: 'pill bad' }, longText(call.problem)) : ''),
    el('div', { class: 'answer' }, el('span', { class: `pill ${isBad ? 'bad' : 'fine'}` }, result.status), ' ', el('span', { class: 'notes' }, notes.join(' · ')), el('div', { class: 'result' }, longText(result.text))),
  ];
}

function segmentTitle(tree, id, turn) {
  const segment = tree.segments[id];
  const notes = tree.unfinished && segment.source !== 'policy' ? [] : [`${count(segment.tokens.length)} tokens`];
  if (segment.H) notes.push(`mean H ${show(mean(segment.H) / head.unit)}`, `log-prob ${show(segment.logp.reduce((a, b) => a + b, 0) / head.unit, 2)}`);
  if (segment.span) notes.push(`${seconds(segment.span[1] - segment.span[0])}`);
  const others = tree.below[id].length;
  if (others > 1) notes.push(`shared by ${others} trajectories`);
  const name = segment.source === 'policy' ? `Turn ${turn}` : segment.source === 'tool' ? 'Tool' : 'Prompt';
  return el('header', {}, el('h3', {}, name), el('span', { class: 'notes' }, notes.join(' · ')));
}

function decisionStrip(decision) {
  const kind = decisionKind(decision);
  return el('button', { class: `strip ${kind}`, onclick: () => look({ seg: String(decision.segment), tab: 'branch' }) },
    el('i', { class: `dot ${kind}` }), el('b', {}, WHAT[kind]), ` H ${show(decision.H)}, at the start ${show(decision.H0)}`,
    decision.P === null ? '' : `, P ${show(decision.P, 3)} against ${comparedWith(decision)[0]}, ${show(comparedWith(decision)[1], 3)}`, ' – why?');
}

function segmentCard(tree, leaf, id, turn) {
  const segment = tree.segments[id];
  const decision = tree.decisionAt.get(id);
  const card = el('section', { class: `segment ${segment.source}${state.seg === String(id) ? ' picked' : ''}`, id: `segment-${id}` }, segmentTitle(tree, id, turn));
  if (segment.result) card.append(...callParts(segment), segment.tokens.length ? el('details', {}, el('summary', {}, 'what the policy read'), tokensOf(segment, leaf)) : '');
  else if (tree.unfinished && segment.source === 'prompt') card.append(...tree.messages.map(([, content]) => el('div', {}, longText(content))));
  else card.append(tokensOf(segment, leaf));
  return [card, decision ? decisionStrip(decision) : null];
}

function drawPath(tree, pane) {
  const leaf = tree.leaves[state.leaf];
  let turn = 0;
  pane.append(colorChoice([leaf]), rewardFacts(leaf));
  if (tree.unfinished) pane.append(absent('The rollout of this question goes on, or was cut off. What its trajectories have done so far is shown; those that have ended wait for the others.'));
  for (const id of leaf.path) {
    if (tree.segments[id].source === 'policy') turn += 1;
    pane.append(...segmentCard(tree, leaf, id, turn).filter(Boolean));
  }
  pane.append(...unusedCalls('Calls whose results did not fit', tree.unused.filter((each) => each.chain === leaf.chain)));
}

function unusedCalls(title, calls) {
  return calls.length ? [el('h3', {}, title), ...calls.map((each) => el('section', { class: 'segment tool' }, callParts(each)))] : [];
}

function drawFacts(tree, pane) {
  const facts = [...Object.entries(tree.facts).map(([name, value]) => fact(name, Array.isArray(value) ? value.map((each) => show(each)).join(', ') : show(value, 6))),
    ...Object.entries(tree.metadata).map(([name, value]) => fact(longText(name), longText(value)))];
  const { step, loss, logged } = tree.update || {};
  if (tree.update) facts.push(fact('optimiser step, made again', `${step}: loss ${show(loss, 8)}, ${logged === null ? 'none was logged' : `logged ${show(logged, 8)}`}`));
  pane.append(el('dl', { class: 'facts' }, fact('question', longText(tree.id)), fact('accepted answers', tree.answers.map((answer) => el('div', {}, longText(answer)))), facts),
    ...tree.messages.map(([role, content]) => el('section', { class: 'segment prompt' }, el('header', {}, el('h3', {}, longText(role))), longText(content))),
    ...unusedCalls('Calls of a chain that was discarded', tree.unused.filter((each) => !tree.leaves.some((leaf) => leaf.chain === each.chain))));
}
