// The page of Mobula: asks a head for the state of the cluster again and again, and draws it.
// What comes from the cluster is only ever set as text, never as markup.

// ---------------------------------------------------------------- Elements and words

const byId = (id) => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';

function dress(node, props, children) {
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === 'function') node.addEventListener(key, value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}

/** An element; properties that are functions are listeners. */
const el = (tag, props = {}, ...children) => dress(document.createElement(tag), props, children);
const svg = (tag, props = {}, ...children) => dress(document.createElementNS(SVG, tag), props, children);

/** Replaces what is in a place; who had the focus there keeps it, found again by its data-key. */
function put(place, ...children) {
  const active = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...children);
  if (active) place.querySelector(`[data-key="${CSS.escape(active)}"]`)?.focus({ preventScroll: true });
}

const shown = new WeakMap();

/** Whether this is other than what the place shows. Drawing the same again would lose the reader's selection. */
function isNews(place, data) {
  const text = JSON.stringify(data);
  if (shown.get(place) === text) return false;
  shown.set(place, text);
  return true;
}

function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
  if (place.classList.contains('banner')) place.hidden = text === '';
}

function bytes(count) {
  for (const [unit, size] of [['TB', 1e12], ['GB', 1e9], ['MB', 1e6], ['kB', 1e3]]) {
    if (count >= size) return `${(count / size).toFixed(count < 100 * size ? 1 : 0)} ${unit}`;
  }
  return `${count} B`;
}

function duration(ms) {
  if (ms < 10) return `${ms.toFixed(ms < 1 ? 2 : 1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`;
}

const many = (count, one, more = `${one}s`) => `${count} ${count === 1 ? one : more}`;
const clockTime = (unixMs) => new Date(unixMs).toISOString().slice(11, 19);

/** An id, shortened in the middle, whole on hover. */
function shortId(id) {
  const cut = id.indexOf('-');
  const text = cut > 12 ? `${id.slice(0, 8)}…${id.slice(cut)}` : id;
  return el('span', { class: 'id short', title: id }, text || '—');
}

const chip = (text, kind = '') => el('span', { class: `chip ${kind}` }, text);

function meter(part, whole, words) {
  const share = whole > 0 ? Math.min(1, Math.max(0, part / whole)) : 0;
  const fill = el('i', { class: share > 0.9 ? 'high' : null });
  fill.style.width = `${share * 100}%`;
  return el('span', {}, el('span', { class: 'meter', 'aria-hidden': 'true' }, fill), words);
}

/** A table in a place. Columns are [heading, cell of a row, class of the cells]. */
function table(place, columns, rows, empty, dimmed = () => false) {
  if (rows.length === 0) return put(place, el('p', { class: 'muted' }, empty));
  const head = columns.map(([title, , kind]) => el('th', { scope: 'col', class: kind }, title));
  const cells = (row) => columns.map(([, cell, kind], at) =>
    el(at === 0 ? 'th' : 'td', { class: kind, scope: at === 0 ? 'row' : null }, cell(row)));
  const body = rows.map((row) => el('tr', { class: dimmed(row) ? 'gone' : null }, ...cells(row)));
  put(place, el('table', {}, el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...body)));
}

function whyButton(id, words = 'why?') {
  const label = `Why: ${id}`;
  return el('button', { type: 'button', 'data-key': `why ${id}`, 'aria-label': label, click: () => explain(id) }, words);
}

// ---------------------------------------------------------------- Asking a head, whichever answers

// A head may have to wait for another head and then for a node that do not answer: 1 s a round, and 3 s.
const TIMEOUT_MS = 8_000;
const STATE = '/api/v0/state';
const NOTICE_MS = 15_000;
const HEADS = 'mobula-heads';
const TOKEN = 'mobula-token';

class NoHead extends Error {}
class NoToken extends Error {}
/** The head answers, and says why not. */
class Refusal extends Error {}

let heads = [...new Set([location.origin, ...JSON.parse(sessionStorage.getItem(HEADS) ?? '[]')])];
let talksTo = location.origin;
let token = sessionStorage.getItem(TOKEN) ?? '';
let isLocked = false;
let noticeEnds = 0;

/** The head that served the page goes first; heads that joined since are known from the state. */
function learnHeads(state) {
  const told = state.heads.map((head) => `${location.protocol}//${head.address}`);
  heads = [...new Set([location.origin, ...told])];
  sessionStorage.setItem(HEADS, JSON.stringify(heads));
}

async function askHead(head, path) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), TIMEOUT_MS);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  try {
    const answer = await fetch(head + path, { headers, cache: 'no-store', signal: abort.signal });
    return { status: answer.status, text: await answer.text() };
  } finally {
    clearTimeout(timer);
  }
}

/** Asks the head that answered last, then the others. */
async function ask(path) {
  const order = [talksTo, ...heads.filter((head) => head !== talksTo)];
  let isGone = false;
  for (const head of order) {
    let answer;
    try {
      answer = await askHead(head, path);
    } catch (error) {
      // A big question may take long at a head that is well: only the state's being late speaks against it.
      isGone ||= head === order[0] && (path === STATE || error.name !== 'AbortError');
      continue;
    }
    if (isGone && talksTo === order[0]) moveTo(head);
    return judged(answer);
  }
  throw new NoHead('no head answers');
}

function moveTo(head) {
  say(byId('notice'), `Head ${hostOf(talksTo)} does not answer, talking to ${hostOf(head)}.`);
  noticeEnds = performance.now() + NOTICE_MS;
  talksTo = head;
}

const hostOf = (origin) => origin.replace(/^https?:\/\//, '');

function judged({ status, text }) {
  if (status === 401) {
    lock();
    throw new NoToken('the cluster wants its token');
  }
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // Not every refusal is JSON.
  }
  if (status >= 400) throw new Refusal(body?.error ?? (text.trim() || `the head answers ${status}`));
  if (body === null) throw new Refusal('the head answers something that is not JSON');
  return body;
}

function lock() {
  if (isLocked) return;
  isLocked = true;
  document.body.classList.add('locked');
  byId('token-form').hidden = false;
  say(byId('token-note'), token ? 'The token that was given is not that of this cluster.' : '');
  byId('token').focus();
}

function unlock(event) {
  event.preventDefault();
  token = byId('token').value.trim();
  sessionStorage.setItem(TOKEN, token);
  byId('token').value = '';
  byId('token-form').hidden = true;
  document.body.classList.remove('locked');
  isLocked = false;
  hurry();
}

// ---------------------------------------------------------------- What is known

const KEPT_MS = 300_000;
/** Re-executed ones are few, and the recovery report wants them for longer. */
const AGAIN_KEPT_MS = 3_600_000;
const BARS_MAX = 60_000;
const CURVE_MS = 120_000;
const AFTERMATH_MS = 60_000;

/** Everything that is forgotten when the cluster turns out to be another. */
const nothing = () => ({
  cluster: '',
  state: null,
  receivedAt: 0,
  headIds: new Map(),
  lastTotals: new Map(),
  curve: [],
  events: [],
  bars: new Map(),
  running: [],
  barsUpToMs: 0,
  barsFromMs: Infinity,
  /** When bars were last missing: nodes had more than they told, or there were too many to keep. */
  cutAtMs: 0,
  barsSilent: [],
});
let known = nothing();

/** Now by the cluster's clock: the browser's may be wrong. */
const clusterNow = () =>
  known.state ? known.state.now_ms + performance.now() - known.receivedAt : Date.now();

async function pollState() {
  const state = await ask(STATE);
  // A head that has no view yet says 0.
  if (/[^0]/.test(state.cluster)) {
    if (known.cluster && known.cluster !== state.cluster) known = nothing();
    known.cluster = state.cluster;
  }
  known.state = state;
  known.receivedAt = performance.now();
  for (const head of state.heads) if (head.head !== null) known.headIds.set(head.address, head.head);
  learnHeads(state);
  addRates(state);
}

/** Rates are differences of what each life of a node has ended, so that a death or a restart is no negative rate. */
function addRates(state) {
  const point = { at: state.now_ms, ended: 0, again: 0 };
  let isFirst = true;
  for (const total of state.totals) {
    const life = `${total.node} ${total.incarnation}`;
    const last = known.lastTotals.get(life);
    const seconds = last ? (state.now_ms - last.at) / 1000 : 0;
    if (last && seconds < 0.2) continue;
    if (last) {
      isFirst = false;
      point.ended += Math.max(0, total.ended - last.ended) / seconds;
      point.again += Math.max(0, total.again - last.again) / seconds;
    }
    known.lastTotals.set(life, { at: state.now_ms, ended: total.ended, again: total.again });
  }
  for (const [life, last] of known.lastTotals) {
    // Long silent, or told by a head whose clock is ahead.
    if (Math.abs(state.now_ms - last.at) > CURVE_MS) known.lastTotals.delete(life);
  }
  if (!isFirst || state.totals.length === 0) known.curve.push(point);
  known.curve = known.curve.filter((old) => old.at > state.now_ms - CURVE_MS - 2_000);
}

async function pollEvents() {
  const of = known;
  const above = of.events.at(-1)?.seq ?? 0;
  const { events } = await ask(`/api/v0/cluster_events?above=${above}`);
  of.events.push(...events.filter((event) => event.seq > above).sort((a, b) => a.seq - b.seq));
}

const OVERLAP_MS = 1_000;
/** Nodes tell times to a millisecond or so: the same bar may come back shifted by that much. */
const JITTER_MS = 5;

async function pollTimeline() {
  const of = known;
  const since = Math.max(0, Math.floor(Math.max(of.barsUpToMs - OVERLAP_MS, clusterNow() - KEPT_MS)));
  const reply = await ask(`/api/v0/tasks/timeline?since_ms=${since}`);
  mergeBars(of, reply, since);
  of.barsFromMs = Math.min(of.barsFromMs, since);
  if (reply.more) of.cutAtMs = reply.now_ms;
  of.barsSilent = reply.silent;
}

const rowOf = (bar) => (bar.row ??= `${bar.node}/w${bar.worker}`);
/** No two bars end with the same attempt of a task; when they began is told a little differently each time. */
const barId = (bar) => `${rowOf(bar)} ${bar.task} ${bar.attempt}`;

/** Of the nodes that answered, the reply is the truth from `since` on; if it was cut, from its oldest bar on. */
function mergeBars(of, reply, since) {
  const ended = reply.bars.filter((bar) => bar.ended_us > 0);
  const truthFrom = new Map();
  for (const bar of reply.bars) truthFrom.set(bar.node, reply.more ? Infinity : since * 1000);
  if (reply.more) for (const bar of ended) truthFrom.set(bar.node, Math.min(truthFrom.get(bar.node), bar.ended_us));
  for (const [id, bar] of of.bars) {
    if (!bar.lost && bar.ended_us >= (truthFrom.get(bar.node) ?? Infinity) + JITTER_MS * 1000) of.bars.delete(id);
  }
  for (const bar of ended) of.bars.set(barId(bar), bar);
  const running = reply.bars.filter((bar) => bar.ended_us === 0);
  const hasGap = reply.more || since > of.barsUpToMs;
  for (const bar of of.running) {
    const fate = fateOf(bar, running, ended, of, reply.silent, hasGap);
    if (fate === 'silent') running.push(bar);
    if (fate === 'lost') of.bars.set(`lost ${barId(bar)}`, { ...bar, ended_us: of.barsUpToMs * 1000, lost: true });
  }
  of.running = running;
  of.barsUpToMs = reply.now_ms;
  forgetBars(of);
}

/** What became of an attempt that ran when the nodes were asked before. */
function fateOf(bar, running, ended, of, silent, hasGap) {
  const row = rowOf(bar);
  if (running.some((other) => barId(other) === barId(bar))) return 'running';
  const lastSeen = (of.barsUpToMs - JITTER_MS) * 1000;
  if (ended.some((other) => rowOf(other) === row && other.ended_us >= lastSeen)) return 'ended';
  const isAlive = of.state?.nodes.some((node) => node.node === bar.node && node.state === 'alive');
  if (!isAlive) return 'lost';
  if (silent.some((who) => who.startsWith(`node ${bar.node} `))) return 'silent';
  return hasGap ? 'ended' : 'lost';
}

function forgetBars(of) {
  const isOld = (bar) =>
    bar.ended_us / 1000 < of.barsUpToMs - (bar.attempt > 1 ? AGAIN_KEPT_MS : KEPT_MS);
  for (const [id, bar] of of.bars) if (isOld(bar)) of.bars.delete(id);
  if (of.bars.size <= BARS_MAX) return;
  of.cutAtMs = of.barsUpToMs;
  const oldest = [...of.bars].sort(([, a], [, b]) => a.ended_us - b.ended_us);
  for (const [id] of oldest.slice(0, of.bars.size - BARS_MAX)) of.bars.delete(id);
}

/** Deaths and elections as marks; elections of the same moment are one mark. */
function faults(fromMs) {
  const marks = [];
  for (const event of known.events) {
    if (event.unix_ms < fromMs) continue;
    if (event.kind === 'node-died') marks.push({ at: event.unix_ms, kind: 'died', words: `node ${event.name ?? '?'} died` });
    // The first leader of a shard is no news.
    if (!['election', 'transfer'].includes(event.kind) || event.other_head === null) continue;
    const last = marks.findLast((mark) => mark.kind === event.kind && mark.from === event.other_head);
    const isNear = last && event.unix_ms - last.at < 1_000;
    const mark = isNear ? last : { at: event.unix_ms, kind: event.kind, from: event.other_head, shards: [] };
    mark.shards.push(event.shard);
    mark.words = electionWords(mark);
    if (!isNear) marks.push(mark);
  }
  return marks;
}

function electionWords({ kind, from, shards }) {
  const which = `${shards.length === 1 ? 'shard' : 'shards'} ${[...new Set(shards)].join(', ')}`;
  return kind === 'transfer' ? `head ${from} hands over ${which}` : `${which}: election after head ${from}`;
}

// ---------------------------------------------------------------- Polling

const polls = [
  { every: 1_000, where: [], run: pollState, then: showState },
  { every: 2_000, where: ['cluster', 'timeline', 'events'], run: pollEvents, then: showEventual },
  { every: 2_000, where: ['cluster', 'timeline'], run: pollTimeline, then: showEventual, note: 'timeline-note' },
  { every: 3_000, where: ['tasks'], run: () => pollList('tasks'), then: showTasks, note: 'tasks-note' },
  { every: 3_000, where: ['objects'], run: () => pollList('objects'), then: showObjects, note: 'objects-note' },
  { every: 3_000, where: ['lineage'], run: pollLineage, then: showLineage, note: 'lineage-note' },
];

function tick() {
  if (noticeEnds && performance.now() > noticeEnds) {
    noticeEnds = 0;
    say(byId('notice'), '');
  }
  if (document.hidden || isLocked) return;
  for (const poll of polls) {
    // The state comes first: the clock of the cluster is known from it.
    const isWanted = poll.run === pollState || (known.state && poll.where.includes(route.page));
    const isPaused = poll.run === pollTimeline && route.page === 'timeline' && pausedAt !== null;
    if (isWanted && !isPaused && !poll.isBusy && performance.now() >= (poll.due ?? 0)) start(poll);
  }
}

/** One question. The next of its kind is not asked before this is answered. */
async function start(poll) {
  poll.isBusy = true;
  poll.due = performance.now() + poll.every;
  try {
    const data = await poll.run();
    if (poll.run === pollState) setSilence(false);
    poll.then(data);
    if (poll.note) byId(poll.note).removeAttribute('role');
  } catch (error) {
    if (error instanceof NoHead && poll.run === pollState) setSilence(true);
    if (error instanceof Refusal && poll.note) {
      byId(poll.note).setAttribute('role', 'alert');
      say(byId(poll.note), error.message);
    }
    // Anything else is a mistake of this page.
    if (![NoHead, NoToken, Refusal].some((kind) => error instanceof kind)) console.error(error);
  } finally {
    poll.isBusy = false;
  }
}

/** Everything is asked anew at once: the page, a filter or the token has changed. */
function hurry() {
  for (const poll of polls) poll.due = 0;
  tick();
}

function setSilence(isSilent) {
  document.body.classList.toggle('stale', isSilent);
  say(byId('silence'), isSilent ? 'No head answers, still asking. What is shown is old.' : '');
}

// ---------------------------------------------------------------- Pages

const PAGES = ['cluster', 'tasks', 'objects', 'nodes', 'jobs', 'timeline', 'lineage', 'events'];
let route = { page: 'cluster', params: new URLSearchParams() };

/** `#lineage?id=…`: ids of objects have a # themselves, and are escaped. */
function readRoute() {
  const [page, query] = location.hash.slice(1).split('?');
  return { page: PAGES.includes(page) ? page : 'cluster', params: new URLSearchParams(query ?? '') };
}

const lineageLink = (object) => `#lineage?${new URLSearchParams({ id: object })}`;

function goTo() {
  route = readRoute();
  for (const page of PAGES) byId(`page-${page}`).hidden = page !== route.page;
  for (const link of byId('tabs').children) {
    if (link.hash === `#${route.page}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = `${route.page} — Mobula`;
  byId('tip').hidden = true;
  if (route.page === 'lineage') {
    byId('lineage-id').value = route.params.get('id') ?? '';
    showLineage({ id: route.params.get('id'), lineage: null });
  }
  showState();
  showEventual();
  hurry();
}

/** What is drawn from the state, on whatever page is open. */
function showState() {
  const { state } = known;
  if (!state) return;
  showTop(state);
  const show = { cluster: showCluster, tasks: showFunctions, nodes: showNodes, jobs: showJobs }[route.page];
  show?.(state);
}

/** What is drawn from events and bars, of which there may be many. */
function showEventual() {
  ({ cluster: showPast, timeline: showTimeline, events: showEvents })[route.page]?.();
}

function showTop(state) {
  const up = state.heads.filter((head) => head.error === null).length;
  const names = new Set(state.nodes.map((node) => node.node));
  const alive = new Set(state.nodes.filter((node) => node.state === 'alive').map((node) => node.node));
  say(byId('summary'), `${up}/${state.heads.length} heads · ${alive.size}/${names.size} nodes`);
  const silent = state.silent.length ? ` · ${state.silent.join('; ')}` : '';
  say(byId('foot'), `cluster ${state.cluster} · told by ${hostOf(talksTo)} at ${clockTime(state.now_ms)} UTC${silent}`);
}

/** Who did not answer, and that there is more. */
function listNote(place, { rows, silent, more }) {
  const notes = [many(rows.length, 'row')];
  if (more) notes.push('there are more than are shown');
  say(place, [...notes, ...silent].join('; '));
}

// ---------------------------------------------------------------- Cluster

function showCluster(state) {
  showVerdict(state);
  showMatrix(state);
  drawCurve();
}

function showPast() {
  drawGantt(byId('mini'), 60_000, toldUpTo(), 18);
  showReport();
}

function showVerdict({ verdict, says }) {
  const place = byId('verdict');
  place.className = `banner ${verdict.health}`;
  const spare = `${verdict.heads_may_fail ? many(verdict.heads_may_fail, 'more head') : 'No more head'} may fail`;
  const text = says.charAt(0).toUpperCase() + says.slice(1);
  say(place, verdict.health === 'unavailable' ? text : `${text}. ${spare}.`);
}

function headName(head) {
  const id = head.head ?? known.headIds.get(head.address);
  return id === undefined ? head.address : `head ${id}`;
}

function replicaChip(replica) {
  if (replica.role === 'leader') return chip('leader', 'leader');
  if (replica.role !== 'follower') return chip(replica.role, replica.role);
  return chip(`+${replica.behind}`, replica.behind > 100 ? 'behind' : '');
}

function showMatrix({ shards, heads: all }) {
  const place = byId('matrix');
  const facts = all.map((head) => [headName(head), head.address, head.error]);
  if (!isNews(place, [shards, facts])) return;
  const column = (head, at) => [
    el('span', { title: head.error }, headName(head), el('span', { class: 'small' }, head.address)),
    (shard) => (shard.replicas[at] ? replicaChip(shard.replicas[at]) : '—'),
  ];
  const columns = [
    ['shard', (shard) => String(shard.shard)],
    ...all.map(column),
    ['applied', (shard) => String(shard.applied), 'num'],
    ['term', (shard) => String(shard.term), 'num'],
    ['tasks', (shard) => String(shard.tasks), 'num'],
  ];
  table(place, columns, shards, 'The cluster is not formed yet.');
}

/** Each death, and each election that took office from somebody. */
function showReport() {
  const place = byId('report');
  const told = known.events.filter((event) =>
    event.kind === 'node-died' || (event.kind === 'election' && event.other_head !== null));
  const rows = told.slice(-12).reverse().map(reportRow);
  if (!isNews(place, rows)) return;
  const columns = [
    ['when (UTC)', (row) => row.when],
    ['fault', (row) => chip(row.kind, row.kind === 'node died' ? 'died' : 'behind')],
    ['what', (row) => row.what, 'text'],
    ['noticed after', (row) => row.noticed, 'text'],
    ['redone within 60 s', (row) => row.redone, 'text'],
    ['evidence', (row) => row.evidence, 'text'],
    ['', (row) => (row.id ? whyButton(row.id, 'what came of it?') : '')],
  ];
  table(place, columns, rows, 'No node has died, and no head has lost its office, as far as the log goes.');
  say(byId('report-note'), told.length > rows.length ? `${told.length - rows.length} older ones are under Events.` : '');
}

function reportRow(event) {
  const isDeath = event.kind === 'node-died';
  const cause = event.cause ?? '—';
  return {
    when: clockTime(event.unix_ms),
    kind: isDeath ? 'node died' : 'election',
    what: isDeath ? event.name ?? '?' : `shard ${event.shard}: head ${event.other_head} → head ${event.head}, term ${event.term}`,
    noticed: event.silent_ms ? `${duration(event.silent_ms)} (${cause})` : cause,
    redone: isDeath ? redoneAfter(event.unix_ms) : '—',
    evidence: event.evidence,
    id: isDeath && event.incarnation !== null ? `inc-${event.incarnation}` : null,
  };
}

/** Later attempts that ended within a minute of a death, and how long they ran. */
function redoneAfter(unixMs) {
  if (unixMs < known.barsFromMs) return 'before this page looked';
  const [from, upTo] = [unixMs * 1000, (unixMs + AFTERMATH_MS) * 1000];
  let [tasks, ranUs] = [0, 0];
  for (const bar of known.bars.values()) {
    if (bar.attempt <= 1 || bar.lost || bar.ended_us < from || bar.ended_us >= upTo) continue;
    tasks += bar.count;
    ranUs += Math.max(0, bar.ended_us - bar.began_us);
  }
  const soFar = clusterNow() < unixMs + AFTERMATH_MS ? ' so far' : '';
  const least = known.cutAtMs > unixMs ? 'at least ' : '';
  return tasks ? `${least}${many(tasks, 'task')}, ${duration(ranUs / 1000)} of work${soFar}` : `0 tasks${soFar}`;
}

// ---------------------------------------------------------------- Drawing on canvas

const FONT = '11px system-ui, "DejaVu Sans", sans-serif';
const VIOLET = '#a78bfa';
/** Blues, greens and teals: violet and red mean something else. */
const PALETTE = ['#58a6ff', '#3fb27f', '#4cc3d9', '#2f6fc4', '#86dcb9', '#2c8f8f', '#a5d0ff', '#1f8050'];
const DARK = { text: '#9aa8bf', grid: '#2a364c', died: '#f87171', election: '#f0b648', fill: 'rgb(88 166 255 / 15%)' };
const LIGHT = { text: '#333333', grid: '#bbbbbb', died: '#b91c1c', election: '#8a5a00', fill: 'rgb(88 166 255 / 25%)' };
let isPrinting = false;
const inks = () => (isPrinting ? LIGHT : DARK);
const markInk = (mark) => (mark.kind === 'died' ? inks().died : inks().election);

const colours = new Map();

/** By a hash of the name, the same on every page; where that is taken, the next one that is free. */
function colourOf(name) {
  if (!colours.has(name)) {
    let hash = 0;
    for (const char of name) hash = (hash * 31 + char.codePointAt(0)) >>> 0;
    const turned = PALETTE.map((_, at) => PALETTE[(hash + at) % PALETTE.length]);
    const taken = new Set(colours.values());
    colours.set(name, turned.find((colour) => !taken.has(colour)) ?? turned[0]);
  }
  return colours.get(name);
}

/** A clean canvas of this height, as wide as there is room, sharp on any screen. Nothing while it is not shown. */
function clean(canvas, height) {
  const width = canvas.clientWidth;
  if (width === 0) return null;
  const scale = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const ink = canvas.getContext('2d');
  ink.setTransform(scale, 0, 0, scale, 0, 0);
  ink.font = FONT;
  return { ink, width, height };
}

/** A round number at or above. */
function niceTop(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 4, 5, 8, 10].map((step) => step * unit).find((step) => step >= value) ?? value;
}

function drawCurve() {
  const canvas = byId('curve');
  const room = clean(canvas, 190);
  if (!room) return;
  const { ink, width, height } = room;
  const [left, right, top, bottom] = [48, width - 8, 16, height - 20];
  const now = known.state.now_ms;
  const highest = niceTop(Math.max(4, ...known.curve.map((point) => Math.max(point.ended, point.again))));
  const x = (at) => left + ((at - now + CURVE_MS) / CURVE_MS) * (right - left);
  const y = (rate) => bottom - (rate / highest) * (bottom - top);
  drawAxes(ink, { left, right, top, bottom, highest, x, y, now });
  line(ink, known.curve, x, (point) => y(point.ended), PALETTE[0], bottom);
  line(ink, known.curve, x, (point) => y(point.again), VIOLET, null);
  const marks = faults(now - CURVE_MS);
  drawMarks(ink, marks, x, left, right, top, bottom);
  const last = known.curve.at(-1) ?? { ended: 0, again: 0 };
  const words = `${last.ended.toFixed(0)} tasks per second now, ${last.again.toFixed(0)} of them re-executed`;
  canvas.setAttribute('aria-label', `${words}. In two minutes: ${marks.map((mark) => mark.words).join('; ') || 'no faults'}.`);
}

function drawAxes(ink, { left, right, top, bottom, highest, x, y, now }) {
  ink.strokeStyle = inks().grid;
  ink.fillStyle = inks().text;
  ink.lineWidth = 1;
  ink.textAlign = 'right';
  for (let step = 0; step <= 4; step++) {
    const rate = (highest * step) / 4;
    stroke(ink, left, y(rate), right, y(rate));
    ink.fillText(rate >= 10_000 ? `${rate / 1000}k` : String(rate), left - 6, y(rate) + 4);
  }
  for (let ago = CURVE_MS; ago >= 0; ago -= 30_000) {
    stroke(ink, x(now - ago), top, x(now - ago), bottom);
    ink.textAlign = ago === 0 ? 'right' : ago === CURVE_MS ? 'left' : 'center';
    ink.fillText(ago === 0 ? 'now' : `−${ago / 1000} s`, x(now - ago), bottom + 15);
  }
}

function stroke(ink, x0, y0, x1, y1) {
  ink.beginPath();
  ink.moveTo(x0, y0);
  ink.lineTo(x1, y1);
  ink.stroke();
}

/** A line through points, broken where nothing was heard for a while; filled down to `floor`, if there is one. */
function line(ink, points, x, y, colour, floor) {
  const pieces = [];
  for (const point of points) {
    const piece = pieces.at(-1);
    if (piece && point.at - piece.at(-1).at < 12_000) piece.push(point);
    else pieces.push([point]);
  }
  for (const piece of pieces) {
    const path = new Path2D();
    for (const [at, point] of piece.entries()) path[at === 0 ? 'moveTo' : 'lineTo'](x(point.at), y(point));
    ink.strokeStyle = colour;
    ink.lineWidth = 1.6;
    ink.stroke(path);
    if (floor === null) continue;
    path.lineTo(x(piece.at(-1).at), floor);
    path.lineTo(x(piece[0].at), floor);
    ink.fillStyle = inks().fill;
    ink.fill(path);
  }
}

/** Vertical lines, with their words on two levels as far as there is room. */
function drawMarks(ink, marks, x, left, right, top, bottom) {
  const ends = [-Infinity, -Infinity];
  ink.lineWidth = 1.5;
  for (const mark of marks) {
    const at = x(mark.at);
    if (at < left || at > right) continue;
    ink.strokeStyle = ink.fillStyle = markInk(mark);
    stroke(ink, at, top - 8, at, bottom);
    const wide = ink.measureText(mark.words).width;
    const begin = at + 4 + wide > right ? at - 4 - wide : at + 4;
    const level = ends.findIndex((end) => begin > end + 6);
    if (level < 0 || begin < 0) continue;
    ends[level] = begin + wide;
    ink.textAlign = 'left';
    ink.fillText(mark.words, begin, top + level * 12);
  }
}

function hatch(ink) {
  const tile = document.createElement('canvas');
  tile.width = tile.height = 6;
  const pen = tile.getContext('2d');
  pen.fillStyle = '#3b1d24';
  pen.fillRect(0, 0, 6, 6);
  pen.strokeStyle = '#f87171';
  pen.lineWidth = 1.5;
  for (const shift of [-3, 3, 9]) stroke(pen, shift - 4, 7, shift + 4, -1);
  return ink.createPattern(tile, 'repeat');
}

// ---------------------------------------------------------------- Timeline

let windowMs = 60_000;
let pausedAt = null;
/** What was drawn last on each canvas, for who points at it. */
const drawn = new WeakMap();

/** What runs is known to have run until the nodes were asked, and no longer. */
const toldUpTo = () => known.barsUpToMs || clusterNow();

/** Bars by worker that show in a stretch of time. */
function barsIn(fromMs, toMs) {
  const rows = new Map();
  for (const bar of [...known.bars.values(), ...known.running]) {
    const ended = bar.ended_us === 0 ? toMs * 1000 : bar.ended_us;
    if (ended < fromMs * 1000 || bar.began_us > toMs * 1000) continue;
    const row = rowOf(bar);
    if (!rows.has(row)) rows.set(row, []);
    rows.get(row).push(bar.ended_us > 0 ? bar : { ...bar, ended_us: ended, runs: true });
  }
  const order = new Intl.Collator('en', { numeric: true });
  return [...rows].sort(([a], [b]) => order.compare(a, b));
}

const isSpecial = (bar) => bar.attempt > 1 || bar.failed || bar.lost === true;

function drawGantt(canvas, spanMs, endMs, rowHeight) {
  const fromMs = endMs - spanMs;
  const rows = barsIn(fromMs, endMs);
  const top = 30;
  const room = clean(canvas, top + Math.max(rows.length, 1) * (rowHeight + 6) + 20);
  if (!room) return rows;
  const { ink, width, height } = room;
  const [left, right, bottom] = [width < 500 ? 70 : 110, width - 6, height - 18];
  const x = (ms) => left + ((ms - fromMs) / spanMs) * (right - left);
  const pattern = hatch(ink);
  drawTimes(ink, { left, right, bottom, spanMs, endMs, x, top });
  const lanes = rows.map(([row, bars], at) => {
    const y = top + at * (rowHeight + 6);
    ink.fillStyle = inks().text;
    ink.textAlign = 'left';
    ink.fillText(fitted(ink, row, left - 8), 0, y + rowHeight / 2 + 4);
    drawBars(ink, bars, x, left, y, rowHeight, pattern);
    return { row, bars, y };
  });
  const marks = faults(fromMs).filter((mark) => mark.at <= endMs);
  drawMarks(ink, marks, x, left, right, 12, bottom);
  drawn.set(canvas, { lanes, left, right, fromMs, spanMs, rowHeight });
  canvas.setAttribute('aria-label', ganttWords(rows, marks, spanMs));
  return rows;
}

function drawTimes(ink, { left, right, bottom, spanMs, endMs, x, top }) {
  ink.strokeStyle = inks().grid;
  ink.fillStyle = inks().text;
  ink.lineWidth = 1;
  stroke(ink, left, bottom, right, bottom);
  const step = spanMs / (right - left < 400 ? 2 : 5);
  for (let ago = spanMs; ago >= 0; ago -= step) {
    stroke(ink, x(endMs - ago), top, x(endMs - ago), bottom);
    ink.textAlign = ago === 0 ? 'right' : ago === spanMs ? 'left' : 'center';
    ink.fillText(ago === 0 ? clockTime(endMs) : `−${ago / 1000} s`, x(endMs - ago), bottom + 14);
  }
}

function fitted(ink, text, room) {
  if (ink.measureText(text).width <= room) return text;
  let kept = text;
  while (kept.length > 1 && ink.measureText(`…${kept}`).width > room) kept = kept.slice(1);
  return `…${kept}`;
}

/** What is special goes on top, and is never narrower than can be seen. */
function drawBars(ink, bars, x, left, y, height, pattern) {
  for (const special of [false, true]) {
    let lastPixel = -1;
    for (const bar of bars) {
      if (isSpecial(bar) !== special) continue;
      const from = Math.max(left, x(bar.began_us / 1000));
      const wide = Math.max(x(bar.ended_us / 1000) - from, special ? 1.2 : 0.7);
      // Of many within one pixel, one is enough.
      if (wide <= 2 && Math.floor(from) === lastPixel) continue;
      lastPixel = Math.floor(from);
      ink.fillStyle = bar.attempt > 1 ? VIOLET : colourOf(bar.name);
      if (bar.failed || bar.lost) ink.fillStyle = pattern;
      ink.fillRect(from, y, wide > 3 ? wide - 1 : wide, height);
      if (!(bar.attempt > 1 && (bar.failed || bar.lost))) continue;
      ink.fillStyle = VIOLET;
      ink.fillRect(from, y, wide, 3);
    }
  }
}

/** Attempts, later ones and failures of a row, and how much of the time it ran. */
function tally(bars, spanMs, fromMs) {
  const sum = { tasks: 0, again: 0, failed: 0, busyUs: 0 };
  for (const bar of bars) {
    sum.tasks += bar.count;
    if (bar.attempt > 1) sum.again += bar.count;
    if (bar.failed || bar.lost) sum.failed += bar.count;
    sum.busyUs += Math.max(0, bar.ended_us - Math.max(bar.began_us, fromMs * 1000));
  }
  return { ...sum, busy: `${Math.min(100, sum.busyUs / (spanMs * 10)).toFixed(0)} %` };
}

function ganttWords(rows, marks, spanMs) {
  const sum = tally(rows.flatMap(([, bars]) => bars), spanMs, 0);
  const what = `${many(rows.length, 'worker')}, ${many(sum.tasks, 'attempt')}, ${sum.again} re-executed, ${sum.failed} failed or lost`;
  return `Timeline of ${duration(spanMs)}: ${what}. ${marks.map((mark) => mark.words).join('; ') || 'No faults'}.`;
}

function showTimeline() {
  const end = pausedAt ?? toldUpTo();
  const rows = drawGantt(byId('gantt'), windowMs, end, 20);
  const notes = [];
  if (pausedAt !== null) notes.push(`Paused at ${clockTime(pausedAt)} UTC.`);
  if (rows.length === 0) notes.push('Nothing ran in this time.');
  if (known.cutAtMs > end - windowMs) notes.push('There were more attempts than are told or kept: there are gaps.');
  say(byId('timeline-note'), [...notes, ...known.barsSilent].join(' '));
  showLegend(rows);
  showGanttTable(rows, end - windowMs);
}

function showLegend(rows) {
  const names = [...new Set(rows.flatMap(([, bars]) => bars.map((bar) => bar.name)))].sort().slice(0, 24);
  if (!isNews(byId('legend'), names)) return;
  put(byId('legend'), ...names.map((name) => swatch(name, colourOf(name))));
}

function swatch(words, colour) {
  const box = el('i');
  box.style.background = colour;
  return el('span', {}, box, words);
}

function showGanttTable(rows, fromMs) {
  const place = byId('gantt-table');
  if (!place.parentElement.open) return;
  const data = rows.map(([row, bars]) => ({ row, ...tally(bars, windowMs, fromMs) }));
  const columns = [
    ['worker', (line) => line.row],
    ['attempts', (line) => String(line.tasks), 'num'],
    ['re-executed', (line) => String(line.again), 'num'],
    ['failed or lost', (line) => String(line.failed), 'num'],
    ['busy', (line) => line.busy, 'num'],
  ];
  if (isNews(place, data)) table(place, columns, data, 'Nothing ran in this time.');
}

/** Tells of the bar that is pointed at. */
function pointAt(event) {
  const tip = byId('tip');
  const bar = barAt(event.currentTarget, event.offsetX, event.offsetY);
  tip.hidden = !bar;
  if (!bar) return;
  const how = bar.lost ? ', cut short' : bar.failed ? ', failed' : bar.runs ? ', running' : '';
  const ran = duration((bar.ended_us - bar.began_us) / 1000);
  const number = bar.count > 1 ? `\n${bar.count} attempts, one after the other; the last is` : '';
  tip.textContent = `${bar.name}${number}\ntask ${bar.task}\nattempt ${bar.attempt}${how}, ${ran}, on ${rowOf(bar)}`;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
}

function barAt(canvas, atX, atY) {
  const seen = drawn.get(canvas);
  const lane = seen?.lanes.find(({ y }) => atY >= y && atY < y + seen.rowHeight);
  if (!lane) return null;
  const perPixel = (seen.spanMs * 1000) / (seen.right - seen.left);
  const us = seen.fromMs * 1000 + (atX - seen.left) * perPixel;
  const near = lane.bars.filter((bar) => us >= bar.began_us - 2 * perPixel && us <= bar.ended_us + 2 * perPixel);
  const within = near.filter((bar) => us >= bar.began_us && us <= bar.ended_us);
  return near.find(isSpecial) ?? within[0] ?? near[0] ?? null;
}

/** A link cannot show the token, so what it leads to is fetched. */
async function downloadChrome(event) {
  event.preventDefault();
  try {
    const since = Math.max(0, Math.floor(clusterNow() - KEPT_MS));
    const trace = await ask(`/api/v0/tasks/timeline?since_ms=${since}&format=chrome`);
    const url = URL.createObjectURL(new Blob([JSON.stringify(trace)], { type: 'application/json' }));
    el('a', { href: url, download: 'mobula-trace.json' }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  } catch (error) {
    say(byId('timeline-note'), error.message);
  }
}

function chooseWindow(button) {
  windowMs = Number(button.dataset.window);
  for (const other of document.querySelectorAll('[data-window]')) {
    other.setAttribute('aria-pressed', String(other === button));
  }
  showTimeline();
}

function togglePause() {
  pausedAt = pausedAt === null ? toldUpTo() : null;
  byId('pause').setAttribute('aria-pressed', String(pausedAt !== null));
  hurry();
  showTimeline();
}

// ---------------------------------------------------------------- Tasks and objects

/** A filter, or the beginning of an id. */
function pollList(what) {
  const text = byId(`${what}-filter`).value.trim();
  const query = new URLSearchParams({ limit: '500' });
  if (text.includes('=')) query.set('filter', text);
  else if (text) query.set('prefix', text.replace(/#.*$/, ''));
  return ask(`/api/v0/${what}?${query}`);
}

const STATE_COLOURS = {
  running: '#58a6ff', given: '#3d7fd1', placed: '#2c8f8f', finishing: '#3fb27f', undurable: '#6cc4a1',
  queued: '#f0b648', await_arguments: '#b98a2c', await_commit: '#8a6a2a', await_attempt: '#6d5a35',
  blocked: '#94a3b8', stalled: '#f87171',
};
const stateChip = (state) => {
  const waits = ['queued', 'await_arguments', 'await_commit', 'await_attempt', 'blocked', 'pending', 'locating'];
  const well = ['here', 'inline', 'alive', 'succeeded'];
  const kind = waits.includes(state) ? 'waits' : well.includes(state) ? 'well' : state;
  return chip(state, /^[a-z]+$/.test(kind) ? kind : '');
};

function showFunctions({ functions }) {
  const place = byId('functions');
  if (!isNews(place, functions)) return;
  const most = Math.max(1, ...functions.map(tasksOf));
  const none = el('p', { class: 'muted' }, 'No node keeps or runs a task now.');
  put(place, ...(functions.length ? functions.map((one) => functionBar(one, most)) : [none]));
}

const tasksOf = ({ states }) => Object.values(states).reduce((sum, count) => sum + count, 0);

function functionBar(one, most) {
  const parts = Object.entries(one.states).map(([state, count]) => {
    const part = el('i', { title: `${state}: ${count}` });
    part.style.flex = `${count} 1 0`;
    part.style.background = STATE_COLOURS[state] ?? '#94a3b8';
    return part;
  });
  const stack = el('div', { class: 'stack', 'aria-hidden': 'true' }, ...parts);
  stack.style.width = `${(tasksOf(one) / most) * 100}%`;
  const words = Object.entries(one.states).map(([state, count]) => `${count} ${state}`).join(', ');
  return el('div', { class: 'function' }, el('span', { title: `job ${one.job}` }, one.name), stack, el('span', { class: 'muted' }, words));
}

function showTasks(list) {
  listNote(byId('tasks-note'), list);
  if (!isNews(byId('tasks-table'), list.rows)) return;
  const columns = [
    ['task', (row) => shortId(row.task)],
    ['name', (row) => row.name],
    ['state', (row) => stateChip(row.state)],
    ['attempt', (row) => String(row.attempt), 'num'],
    ['node', (row) => row.node || '—'],
    ['keeper', (row) => row.keeper || '—'],
    ['pid', (row) => (row.pid ? String(row.pid) : '—'), 'num'],
    ['', (row) => whyButton(row.task)],
  ];
  table(byId('tasks-table'), columns, list.rows, 'There are no such tasks now.');
}

function showObjects(list) {
  listNote(byId('objects-note'), list);
  const rows = list.rows.toSorted((a, b) => b.size - a.size);
  if (!isNews(byId('objects-table'), rows)) return;
  const link = (row) =>
    el('a', { href: lineageLink(row.object), 'data-key': `lineage ${row.object}`, 'aria-label': `Lineage of ${row.object}` }, 'lineage');
  const columns = [
    ['object', (row) => shortId(row.object)],
    ['size', (row) => bytes(row.size), 'num'],
    ['state', (row) => stateChip(row.state)],
    ['nodes', (row) => row.nodes.join(' ') || '—'],
    ['programs', (row) => String(row.clients), 'num'],
    ['tasks', (row) => String(row.tasks), 'num'],
    ['used', (row) => String(row.used), 'num'],
    ['waiting', (row) => String(row.waiting), 'num'],
    ['on disk', (row) => String(row.spilled), 'num'],
    ['', link],
    ['', (row) => whyButton(row.object)],
  ];
  table(byId('objects-table'), columns, rows, 'There are no such objects now.');
}

// ---------------------------------------------------------------- Nodes and jobs

function showNodes(state) {
  say(byId('nodes-note'), state.silent.join('; '));
  // `alive` goes before `gone`.
  const nodes = state.nodes.toSorted((a, b) => a.state.localeCompare(b.state) || a.node.localeCompare(b.node));
  if (isNews(byId('nodes-table'), nodes)) nodesTable(nodes);
  if (isNews(byId('workers-table'), state.workers)) workersTable(state.workers);
  if (isNews(byId('heads-table'), state.heads)) headsTable(state.heads);
}

function nodesTable(nodes) {
  const more = (row) => [...Object.entries(row.resources), ...Object.entries(row.labels)].map((pair) => pair.join('=')).join(' ');
  const cpus = (row) => meter(row.cpus - row.cpus_free, row.cpus, `${+(row.cpus - row.cpus_free).toFixed(2)} of ${row.cpus}`);
  const store = (row) => meter(row.store_bytes_used, row.store_bytes, `${bytes(row.store_bytes_used)} of ${bytes(row.store_bytes)}`);
  const columns = [
    ['node', (row) => row.node],
    ['state', (row) => chip(row.state, row.state === 'alive' ? 'well' : 'down')],
    ['CPUs in use', (row) => (row.state === 'alive' ? cpus(row) : '—')],
    ['store in use', (row) => (row.state === 'alive' ? store(row) : '—')],
    ['queued', (row) => String(row.queued), 'num'],
    ['incarnation', (row) => row.incarnation],
    ['address', (row) => row.address],
    ['resources, labels', (row) => more(row) || '—'],
    ['', (row) => whyButton(row.incarnation)],
  ];
  table(byId('nodes-table'), columns, nodes, 'No node has joined.', (row) => row.state !== 'alive');
}

function workersTable(workers) {
  const columns = [
    ['node', (row) => row.node],
    ['pid', (row) => String(row.pid), 'num'],
    ['state', (row) => stateChip(row.state)],
    ['runs', (row) => row.name || '—'],
    ['for', (row) => (row.task ? duration(row.for_ms) : '—'), 'num'],
    ['attempt', (row) => (row.task ? String(row.attempt) : '—'), 'num'],
    ['in line', (row) => String(row.line), 'num'],
    ['own memory', (row) => (row.own_bytes ? bytes(row.own_bytes) : '—'), 'num'],
    ['task', (row) => (row.task ? shortId(row.task) : '—')],
  ];
  table(byId('workers-table'), columns, workers, 'No worker runs.');
}

function headsTable(all) {
  const columns = [
    ['head', (row) => headName(row)],
    ['address', (row) => row.address],
    ['state', (row) => (row.error === null ? chip('up', 'well') : chip('down', 'down'))],
    ['memory', (row) => (row.resident_bytes ? bytes(row.resident_bytes) : '—'), 'num'],
    ['disk syncs', (row) => (row.error === null ? String(row.syncs) : '—'), 'num'],
    ['error', (row) => row.error ?? ''],
  ];
  table(byId('heads-table'), columns, all, 'No head is known.');
}

function showJobs({ jobs }) {
  if (!isNews(byId('jobs-table'), jobs)) return;
  const columns = [
    ['job', (row) => el('span', { class: 'id' }, row.job)],
    ['name', (row) => row.name || '—'],
    ['state', (row) => stateChip(row.state)],
    ['driver at', (row) => row.node || '—'],
    ['executable', (row) => el('span', { class: 'id' }, row.executable || '—')],
  ];
  table(byId('jobs-table'), columns, jobs, 'No job runs, and none has ended lately.');
}

// ---------------------------------------------------------------- Lineage

/** As the rest of Mobula draws them: word and fill. */
const STANDINGS = {
  here: ['here', '#1f5c40'],
  freed: ['freed', '#3a4353'],
  waiting: ['waiting', '#5c4516'],
  again: ['running again', '#4b3b86'],
  lost: ['lost', '#5f2424'],
  failed: ['failed', '#111111'],
  unknown: ['no record', '#22262e'],
};
const BOX = { width: 150, height: 26, stepX: 190, stepY: 40, margin: 16 };

async function pollLineage() {
  const id = route.params.get('id');
  return { id, lineage: id ? await ask(`/api/v0/lineage?id=${encodeURIComponent(id)}`) : null };
}

function showLineage({ id, lineage }) {
  const place = byId('dag');
  // Another may have been asked for meanwhile.
  if (id !== route.params.get('id')) return;
  say(byId('lineage-note'), lineageWords(lineage));
  if (!isNews(place, lineage)) return;
  put(byId('lineage-legend'), ...(lineage ? standingCounts(lineage) : []));
  put(place, ...(lineage ? [drawLineage(lineage.tasks)] : []));
}

function lineageWords(lineage) {
  if (!lineage && route.params.get('id')) return 'Asking …';
  if (!lineage) return 'Name an object, or follow a link from the list of objects.';
  const cut = lineage.cut ? ' There are more ancestors than are followed.' : '';
  return `${lineage.object} hangs on ${many(lineage.tasks.length, 'task')}.${cut}`;
}

function standingCounts({ tasks }) {
  return Object.entries(STANDINGS).map(([standing, [word, fill]]) =>
    swatch(`${tasks.filter((task) => task.standing === standing).length} ${word}`, fill));
}

/** How far left each task goes: one farther than the farthest that takes what it makes. */
function layersOf(tasks) {
  const layers = tasks.map(() => 0);
  const takers = tasks.map(() => 0);
  for (const task of tasks) for (const taken of task.takes) takers[taken] += 1;
  const ready = tasks.map((_, at) => at).filter((at) => takers[at] === 0);
  for (const at of ready) {
    for (const taken of tasks[at].takes) {
      layers[taken] = Math.max(layers[taken], layers[at] + 1);
      takers[taken] -= 1;
      if (takers[taken] === 0) ready.push(taken);
    }
  }
  return layers;
}

/** Where the boxes go: in each layer in the order of what takes them, so that few lines cross. */
function placesOf(tasks) {
  const layers = layersOf(tasks);
  const deepest = Math.max(...layers);
  const rows = Array.from({ length: deepest + 1 }, () => []);
  for (const [at, layer] of layers.entries()) rows[layer].push(at);
  const tallest = Math.max(...rows.map((row) => row.length));
  const wishes = tasks.map(() => []);
  const places = [];
  for (const [layer, row] of rows.entries()) {
    const wish = (at) => wishes[at].reduce((sum, y) => sum + y, 0) / (wishes[at].length || 1);
    row.sort((a, b) => wish(a) - wish(b));
    const top = BOX.margin + ((tallest - row.length) * BOX.stepY) / 2;
    for (const [order, at] of row.entries()) {
      const y = top + order * BOX.stepY;
      places[at] = { x: BOX.margin + (deepest - layer) * BOX.stepX, y };
      for (const taken of tasks[at].takes) wishes[taken].push(y);
    }
  }
  const width = 2 * BOX.margin + deepest * BOX.stepX + BOX.width;
  return { places, width, height: 2 * BOX.margin + tallest * BOX.stepY };
}

function drawLineage(tasks) {
  const { places, width, height } = placesOf(tasks);
  const lines = tasks.flatMap((task, at) => task.takes.map((taken) => lineageEdge(places[taken], places[at])));
  const boxes = tasks.map((task, at) => lineageBox(task, places[at]));
  return svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'group' }, ...lines, ...boxes);
}

function lineageEdge(from, to) {
  const [x0, y0, y1] = [from.x + BOX.width, from.y + BOX.height / 2, to.y + BOX.height / 2];
  const bend = (BOX.stepX - BOX.width) / 2;
  return svg('path', { d: `M${x0} ${y0}C${x0 + bend} ${y0} ${to.x - bend} ${y1} ${to.x} ${y1}`, fill: 'none', stroke: '#5b6b86' });
}

function lineageBox(task, { x, y }) {
  const [word, fill] = STANDINGS[task.standing] ?? STANDINGS.unknown;
  const label = `${task.name || task.task.slice(0, 8)}${task.attempt > 1 ? ` ×${task.attempt}` : ''}`;
  const facts = [`task ${task.task}`, `${word}, attempt ${task.attempt}`];
  if (task.size) facts.push(bytes(task.size));
  if (task.nodes.length) facts.push(`on ${task.nodes.join(', ')}`);
  if (task.why) facts.push(task.why);
  const open = () => explain(task.task);
  const press = (event) => {
    if (event.key !== 'Enter' && event.key !== ' ') return;
    event.preventDefault();
    open();
  };
  const props = { role: 'button', tabindex: '0', 'data-key': task.task, 'aria-label': `${label}, ${word}`, click: open, keydown: press };
  const text = label.length > 22 ? `${label.slice(0, 21)}…` : label;
  return svg('g', props,
    svg('title', {}, facts.join('\n')),
    svg('rect', { x, y, width: BOX.width, height: BOX.height, rx: 4, fill, stroke: '#5b6b86' }),
    svg('text', { x: x + BOX.width / 2, y: y + BOX.height / 2 + 4, fill: '#e6edf7', 'text-anchor': 'middle', 'font-size': 11 }, text));
}

// ---------------------------------------------------------------- Events

const EVENTS_MAX = 500;

function showEvents() {
  const wanted = byId('events-search').value.trim().toLowerCase();
  const text = (event) => [event.kind, event.what, event.cause, event.evidence, event.time].join(' ').toLowerCase();
  const found = known.events.filter((event) => text(event).includes(wanted)).reverse();
  const rows = found.slice(0, EVENTS_MAX);
  const cut = found.length > rows.length ? `, the latest ${rows.length} are shown` : '';
  say(byId('events-note'), `${found.length} of ${many(known.events.length, 'event')}${cut}`);
  if (!isNews(byId('events-table'), rows)) return;
  const kinds = { 'node-died': 'died', election: 'behind', 'node-joined': 'well' };
  const columns = [
    ['no.', (row) => String(row.seq), 'num'],
    ['time (UTC)', (row) => row.time, 'time'],
    ['kind', (row) => chip(row.kind, kinds[row.kind] ?? '')],
    ['what', (row) => row.what, 'text'],
    ['cause', (row) => row.cause ?? ''],
    ['evidence', (row) => (row.evidence === row.what ? '' : row.evidence), 'text'],
  ];
  table(byId('events-table'), columns, rows, 'There are no such events.');
}

// ---------------------------------------------------------------- Why

/** Tells what the cluster says of a task, an object or a node. */
async function explain(id) {
  say(byId('why-title'), `Why: ${id}`);
  put(byId('why-text'), el('p', { class: 'muted' }, 'Asking …'));
  if (!byId('why').open) byId('why').showModal();
  let parts;
  try {
    parts = storyParts(await ask(`/api/v0/explain?id=${encodeURIComponent(id)}`));
  } catch (error) {
    parts = [el('p', {}, error.message)];
  }
  // Another may have been asked about meanwhile.
  if (byId('why-title').textContent === `Why: ${id}`) put(byId('why-text'), ...parts);
}

function storyParts({ told, silent, more }) {
  const parts = told.flatMap(({ what, state, node, because }) => [
    el('p', {}, stateChip(state), ' ', el('span', { class: 'id' }, what), node ? `, says ${node}` : ''),
    el('ul', {}, ...because.map((why) => el('li', {}, why))),
  ]);
  if (told.length === 0) parts.push(el('p', {}, 'Nobody knows of it.'));
  if (more) parts.push(el('p', { class: 'muted' }, 'There is more than is told.'));
  return [...parts, ...silent.map((who) => el('p', { class: 'muted' }, who))];
}

// ---------------------------------------------------------------- Start

function redraw() {
  showState();
  showEventual();
}

function listen() {
  window.addEventListener('hashchange', goTo);
  window.addEventListener('resize', redraw);
  window.addEventListener('beforeprint', () => { isPrinting = true; redraw(); });
  window.addEventListener('afterprint', () => { isPrinting = false; redraw(); });
  document.addEventListener('visibilitychange', () => { if (!document.hidden) hurry(); });
  document.querySelector('.skip').addEventListener('click', (event) => { event.preventDefault(); byId('main').focus(); });
  byId('token-form').addEventListener('submit', unlock);
  for (const what of ['tasks', 'objects']) {
    byId(`${what}-form`).addEventListener('submit', (event) => { event.preventDefault(); hurry(); });
  }
  byId('lineage-form').addEventListener('submit', (event) => {
    event.preventDefault();
    location.hash = lineageLink(byId('lineage-id').value.trim());
  });
  byId('events-search').addEventListener('input', showEvents);
  for (const button of document.querySelectorAll('[data-window]')) button.addEventListener('click', () => chooseWindow(button));
  byId('pause').addEventListener('click', togglePause);
  byId('chrome').addEventListener('click', downloadChrome);
  byId('gantt-table').parentElement.addEventListener('toggle', showTimeline);
  for (const id of ['gantt', 'mini']) {
    for (const kind of ['pointermove', 'pointerdown']) byId(id).addEventListener(kind, pointAt);
    byId(id).addEventListener('pointerleave', () => { byId('tip').hidden = true; });
  }
}

listen();
goTo();
setInterval(tick, 200);
