// The data of the page: compressed JSON, unpacked when it is looked at.

const KEPT_PIECES = 12;
const pieces = new Map();
let head = null;
let vocabulary = [];

async function unpack(name) {
  const packed = atob(document.getElementById(`data-${name}`).textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text());
}

async function piece(number) {
  if (!pieces.has(number)) {
    pieces.set(number, unpack(`piece-${number}`));
    if (pieces.size > KEPT_PIECES) pieces.delete(pieces.keys().next().value);
  }
  return pieces.get(number);
}

async function treeOf(row) {
  const [number, place] = row.place;
  const tree = (await piece(number))[place];
  return tree.children ? tree : prepare(tree);
}

// What follows from parents and leaves: children, depths, which leaves lie below, the path and the own part of each leaf.
function prepare(tree) {
  const segments = tree.segments;
  tree.children = segments.map(() => []);
  tree.depth = segments.map(() => 0);
  tree.below = segments.map(() => []);
  segments.forEach((segment, id) => {
    // The place of its first token in the response, as aepo-explain counts.
    segment.start = tree.unfinished ? null : segment.parent === null ? -segment.tokens.length : segments[segment.parent].start + segments[segment.parent].tokens.length;
    if (segment.parent !== null) {
      tree.children[segment.parent].push(id);
      tree.depth[id] = tree.depth[segment.parent] + 1;
    }
  });
  tree.leaves.forEach((leaf, index) => {
    leaf.path = [];
    for (let id = leaf.segment; id !== null; id = segments[id].parent) {
      leaf.path.unshift(id);
      tree.below[id].push(index);
    }
  });
  for (const leaf of tree.leaves) {
    const trunk = leaf.trunk === null ? new Set() : new Set(tree.leaves[leaf.trunk].path);
    leaf.own = leaf.path.filter((id) => !trunk.has(id));
    leaf.isTrained = leaf.reward?.scored !== false && !(tree.update && !leaf.update);
    // Where the tokens of each turn begin among those that the policy sampled.
    leaf.sampled = new Map();
    let passed = 0;
    for (const segment of leaf.path.map((id) => segments[id]).filter((each) => each.source === 'policy')) {
      leaf.sampled.set(segment, passed);
      passed += segment.tokens.length;
    }
    leaf.states = tree.update?.states;
  }
  tree.decisionAt = new Map(tree.decisions.filter((d) => d.segment !== null).map((d) => [d.segment, d]));
  return tree;
}

const textOf = (segment) => segment.tokens.map((number) => vocabulary[number]).join('');

// The extremes of any number of values: a call takes only so many arguments.
const least = (values, bound) => values.reduce((found, value) => Math.min(found, value), bound);
const most = (values, bound) => values.reduce((found, value) => Math.max(found, value), bound);

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}
