// Why a chain branched after a tool result, or did not. All numbers come from the record or from the rule in Python.

const WHAT = {
  opened: 'branched', alone: 'went on alone', penalised: 'went on alone: the penalty decided',
  unfunded: 'wanted a branch, the budget was spent', refused: 'wanted a branch, the tools forbade it',
};

// Where the entropy is from that the rule compares with.
const isOwnBaseline = () => head.rule.baseline === 'own';

function reason(decision) {
  const more = decision.change > 0 ? 'more uncertain than' : decision.change < 0 ? 'less uncertain than' : 'just as uncertain as';
  const sentence = [`Here the policy was ${more} at the start of its ${isOwnBaseline() ? 'chain' : 'trajectory'} (${show(decision.H)} against ${show(decision.H0)}).`];
  if (decision.l) sentence.push(`${head.rule.scope === 'question' ? 'The chains of the question' : 'The chain'} had branched ${decision.l} time${decision.l > 1 ? 's' : ''} in a row before.`);
  if (decision.wanted && !decision.opened) sentence.push(decision.problem ? 'The rule asked for a branch, but:' : 'The rule asked for a branch, but all trajectories of the budget were given away.');
  if (decision.penalised) sentence.push('Without the penalty for branches in a row it would have branched.');
  return sentence.join(' ');
}

function otherSettings(decision) {
  const rows = Object.entries(decision.other).map(([name, found]) => {
    const own = name === 'penalty_per_step' ? decision.penalty : head.rule.settings[name];
    const results = found.map(([wanted]) => wanted);
    const isIdle = results.every((wanted) => wanted === results[0]);
    const cells = found.map(([wanted, P], i) => {
      const value = head.rule.alternatives[name][i];
      return el('td', { class: `${wanted ? 'yes' : 'no'}${value === own ? ' own' : ''}` }, el('b', {}, show(value, 3)), el('span', {}, wanted ? 'branch' : 'alone'), P === null ? '' : el('small', {}, `P ${show(P, 3)}`));
    });
    return el('tr', {}, el('th', { scope: 'row' }, name, el('small', {}, isIdle ? 'changes nothing here' : '')), cells);
  });
  return el('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': 'other settings' }, el('table', { class: 'others' }, el('caption', {}, 'The same moment under other settings, one at a time (framed: as it was)'), el('tbody', {}, rows)));
}

function comparedWith(decision) {
  return head.rule.bar === 'tau' ? ['tau', head.rule.settings.tau] : ['the number drawn', decision.u];
}

function decisionFacts(decision) {
  return el('dl', { class: 'facts numbers' },
    fact('H, entropy that the rule looked at', show(decision.H, 6)), fact(isOwnBaseline() ? 'H of the first turn of the chain' : 'H of the first turn of the trajectory', show(decision.H0, 6)), fact('change, H minus that', show(decision.change, 6)),
    fact('branches in a row before, l', decision.l), fact('penalty for each', decision.penalty === null ? 'not on record' : show(decision.penalty)),
    fact('P, score of the rule', decision.P === null ? 'not on record' : show(decision.P, 6)), fact('number drawn', show(decision.u, 6)), fact('P is compared with', decision.P === null ? null : comparedWith(decision)[0]),
    fact('branches wanted', decision.wanted), fact('branches opened', decision.opened), fact('chain', decision.chain), fact('after turns', decision.turn));
}

function drawBranch(tree, pane) {
  const decision = tree.decisionAt.get(Number(state.seg));
  if (state.seg === '' || !decision) {
    const first = tree.decisions.find((each) => each.segment !== null);
    pane.append(absent(first ? 'Nothing was decided here. Decisions are ringed in the tree.' : head.rule.absence || 'No chain of this tree decided about a branch.'));
    if (first) pane.append(el('div', {}, tree.decisions.filter((each) => each.segment !== null).map(decisionStrip)));
    return;
  }
  const kind = decisionKind(decision);
  pane.append(el('h3', { class: 'verdict' }, el('i', { class: `dot ${kind}` }), `The chain ${WHAT[kind]}.`), el('p', {}, reason(decision)));
  if (decision.problem) pane.append(el('p', {}, longText(decision.problem)));
  pane.append(decisionFacts(decision));
  if (head.rule.name) {
    const settings = Object.entries(head.rule.settings).map(([name, value]) => `${name} ${typeof value === 'number' ? show(value) : value}`).join(', ');
    pane.append(el('p', { class: 'rule' }, el('b', {}, head.rule.name), ` (${settings}). ${head.rule.formula}`));
  }
  if (decision.other === null) pane.append(absent(head.rule.absence || 'The rule of the configuration does not give what is on record here, so another one was in force: what it computed is not shown.'));
  else if (Object.keys(decision.other).length) pane.append(otherSettings(decision));
}
