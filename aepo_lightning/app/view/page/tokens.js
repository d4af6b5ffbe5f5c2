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
  mask: ['of prompt or tool, or left out: masked from the loss', 'sampled by the policy: trained'],
  gap: ['the engine gave it 0.1 nats more', 'the trainer did'],
  ratio: ['less likely than before: 0.74 and below', 'more likely: 1.35 and above'],
  clip: ['beyond the clip range, no gradient', 'beyond it, gradient kept'],
};

const SIGNED = ['advantage', 'gap', 'ratio', 'clip'];
const OF_UPDATE = ['gap', 'ratio', 'clip'];

// What the update made of a token; null where its step was not made again.
function updated(segment, i, leaf) {
  if (!leaf?.update || segment.source !== 'policy') return null;
  const at = leaf.sampled.get(segment) + i;
  const { gap, ratio, clip, advantage } = leaf.update;
  return { gap: gap[at] / head.unit, ratio: ratio[at], state: leaf.states[clip[at]], advantage: advantage[at] };
}

const clamp = (value) => Math.max(-1, Math.min(1, value));

// How much colour a token has: from 0 to 1, or from -1 to 1 for what has a sign; null leaves it plain.
const SHADES = {
  mask: (segment, i, leaf) => (segment.source === 'policy' && leaf.isTrained ? 0.6 : null),
  entropy: (segment, i) => (segment.H ? clamp(segment.H[i] / head.unit / 2) : null),
  logprob: (segment, i) => (segment.H ? clamp(-segment.logp[i] / head.unit / 5) : null),
  advantage: (segment, i, leaf, found) => (!segment.H || (leaf.advantage ?? found) === null ? null : clamp((found ? found.advantage : leaf.advantage) / 2)),
  gap: (segment, i, leaf, found) => found && clamp(found.gap / 0.1),
  ratio: (segment, i, leaf, found) => found && clamp(Math.log(found.ratio) / 0.3),
  clip: (segment, i, leaf, found) => (found?.state.startsWith('beyond') ? (found.state.endsWith('kept') ? 0.9 : -0.9) : null),
};
const shade = (segment, i, leaf) => entry(SHADES, state.color, 'entropy')(segment, i, leaf, updated(segment, i, leaf));

function aboutToken(segment, i, leaf) {
  const place = segment.start + i;
  const parts = [segment.start === null ? `token ${i} of the turn` : place < 0 ? 'of the prompt' : `token ${place} of the response`];
  if (segment.source === 'policy') {
    parts.push(`H ${show(segment.H[i] / head.unit)}`, `log-prob ${show(segment.logp[i] / head.unit)}`);
    if (leaf && leaf.advantage !== null) parts.push(`advantage ${show(leaf.advantage, 3)}`);
    const found = updated(segment, i, leaf);
    if (found) parts.push(`after shaping ${show(found.advantage, 3)}`, `log-prob gap ${show(found.gap)}`, `ratio ${show(found.ratio)}, ${found.state}`);
  }
  if (segment.source !== 'policy' || leaf?.isTrained === false) parts.push('masked from the loss');
  return parts.join(' · ');
}

function tokenSpan(segment, i, leaf, extra) {
  const value = shade(segment, i, leaf);
  const kind = value === null ? '' : value < 0 ? ' down' : SIGNED.includes(state.color) ? ' up' : ' heat';
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

function colorChoice(leaves) {
  const options = Object.entries(COLORS).map(([name, label]) => {
    const why = head.absences[name];
    return el('option', { value: name, selected: name === state.color, disabled: Boolean(why), title: why }, why ? `${label} (not on record)` : label);
  });
  const legend = entry(LEGENDS, state.color, 'none');
  const isUnknown = OF_UPDATE.includes(state.color) && leaves.some((leaf) => !leaf.update);
  const why = head.absences[state.color] || 'The optimiser step of this question was not made again, or a trajectory was left out of it: there the tokens are plain.';
  return el('div', {}, el('div', { class: 'colors' },
    el('label', {}, 'Tokens by ', el('select', { id: 'color', onchange: (event) => look({ color: event.target.value }) }, options)),
    el('span', { class: `legend ${SIGNED.includes(state.color) ? 'signed' : ''}`, 'aria-hidden': 'true' }, el('span', {}, legend[0]), el('i', {}), el('span', {}, legend[1]))),
    isUnknown ? absent(why) : null);
}
