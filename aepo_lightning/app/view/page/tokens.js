// Tokens coloured by what is known of them.

const TOKENS_AT_ONCE = 1500;
const COLORS = {
  entropy: 'entropy', logprob: 'log-prob', advantage: 'advantage', mask: 'who wrote it',
  gap: 'log-prob gap', ratio: 'ratio', clip: 'clip state',
};
const LEGENDS = {
  entropy: ['certain', 'uncertain: 2 nats and more'],
  logprob: ['likely', 'unlikely: 5 nats and more'],
  advantage: ['pushed down', 'pushed up'],
  none: ['', ''],
  mask: ['of prompt or tool: masked from the loss', 'sampled by the policy: trained'],
};

// From 0 to 1, or from -1 to 1 for what has a sign; null leaves a token plain.
function shade(segment, i, leaf) {
  if (state.color === 'mask') return segment.source === 'policy' ? 0.6 : null;
  if (segment.source !== 'policy') return null;
  if (state.color === 'entropy') return Math.min(1, segment.H[i] / head.unit / 2);
  if (state.color === 'logprob') return Math.min(1, -segment.logp[i] / head.unit / 5);
  if (state.color === 'advantage' && leaf.advantage !== null) return Math.max(-1, Math.min(1, leaf.advantage / 2));
  return null;
}

function aboutToken(segment, i, leaf) {
  const place = segment.start + i;
  const parts = [place < 0 ? 'of the prompt' : `token ${place} of the response`];
  if (segment.source === 'policy') {
    parts.push(`H ${show(segment.H[i] / head.unit)}`, `log-prob ${show(segment.logp[i] / head.unit)}`);
    if (leaf && leaf.advantage !== null) parts.push(`advantage ${show(leaf.advantage, 3)}`);
  } else parts.push('masked from the loss');
  return parts.join(' · ');
}

function tokenSpan(segment, i, leaf, extra) {
  const value = shade(segment, i, leaf);
  const kind = value === null ? '' : value < 0 ? ' down' : state.color === 'advantage' ? ' up' : ' heat';
  const text = vocabulary[segment.tokens[i]];
  return el('span', {
    class: `token${kind}${extra || ''}`, 'data-token': i,
    style: value === null ? null : { '--shade': `${Math.round(Math.abs(value) * 100)}%` }, title: aboutToken(segment, i, leaf),
  }, text === '' ? '·' : visible(text));
}

// The tokens of a segment; the rest comes when it is asked for.
function tokensOf(segment, leaf, mark) {
  const node = el('span', { class: 'text tokens' });
  let shown = 0;
  const more = () => {
    const end = Math.min(segment.tokens.length, shown + TOKENS_AT_ONCE);
    const part = document.createDocumentFragment();
    for (; shown < end; shown++) part.append(tokenSpan(segment, shown, leaf, mark ? mark(shown) : ''));
    node.append(part);
    if (shown < segment.tokens.length) {
      const label = `show more (${count(shown)} of ${count(segment.tokens.length)} tokens)`;
      const button = el('button', { class: 'more', onclick: () => { button.remove(); more(); } }, label);
      node.append(button);
    }
  };
  more();
  return node;
}

function colorChoice() {
  const options = Object.entries(COLORS).map(([name, label]) => {
    const why = head.absences[name];
    return el('option', { value: name, selected: name === state.color, disabled: Boolean(why), title: why }, why ? `${label} (not on record)` : label);
  });
  const legend = entry(LEGENDS, state.color, 'none');
  return el('div', { class: 'colors' },
    el('label', {}, 'Tokens by ', el('select', { id: 'color', onchange: (event) => look({ color: event.target.value }) }, options)),
    el('span', { class: `legend ${state.color}`, 'aria-hidden': 'true' }, el('span', {}, legend[0]), el('i', {}), el('span', {}, legend[1])));
}
