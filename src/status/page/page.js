// The page of `walhalla status --html`: reads the document in #status, and draws it.
//
//   #status ─▶ model (lanes, spans, marks; microseconds) ─▶ picture, moment, events, tables
//                          ▲ state (cluster, view, moment, zone) changes by pointer, keys, fields
//
// Two rules hold everywhere. Text from the document goes to the page by textContent alone, because labels and names of
// tables are other people's. Times are whole microseconds since 1970 (a double holds them exactly until the year 2255),
// because a commit time of PostgreSQL has microseconds, and a restore may have to stop between two of them.
(function () {
  'use strict';

  const SECOND = 1e6;
  const MINUTE = 60 * SECOND;
  const HOUR = 60 * MINUTE;
  const DAY = 24 * HOUR;
  const EVENTS_AT_ONCE = 20;
  const NARROWEST_VIEW = 30 * SECOND;
  const COPY_OPTIONS = ' --target-action promote --archive-mode off';

  const byId = (id) => document.getElementById(id);

  // ---------------------------------------------------------------------------------------------------- elements

  /** An element with properties; `text` is set as text, `data-`, `aria-` and the like as attributes, `on…` as listeners. */
  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === null || value === undefined) continue;
      if (name === 'text') made.textContent = value;
      else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
      else if (name === 'className') made.className = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  function svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === 'text') made.textContent = value;
      else made.setAttribute(name, typeof value === 'number' ? Math.round(value * 100) / 100 : value);
    }
    made.append(...children);
    return made;
  }

  /** Settings that outlive the page. A browser that forbids storage only forgets them. */
  const memory = {
    get(name) {
      try {
        return localStorage.getItem('walhalla-status-' + name);
      } catch {
        return null;
      }
    },
    set(name, value) {
      try {
        localStorage.setItem('walhalla-status-' + name, value);
      } catch {
        /* forgotten */
      }
    },
  };

  // ---------------------------------------------------------------------------------------------------- times

  const pad = (number, width = 2) => String(number).padStart(width, '0');
  let isUtc = memory.get('zone') === 'utc';

  /** Microseconds of an RFC 3339 time in UTC; null for null and for what is none. */
  function microseconds(text) {
    const parts = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$/.exec(text || '');
    if (!parts) return null;
    const seconds = Date.parse(parts[1] + parts[3]);
    return Number.isNaN(seconds) ? null : seconds * 1000 + Number((parts[2] || '').padEnd(6, '0').slice(0, 6));
  }

  /** Minutes that the clock of the page is ahead of UTC at a time. */
  const offsetAt = (us) => (isUtc ? 0 : -new Date(us / 1000).getTimezoneOffset());

  /** What the clock of the page shows at a time. */
  function fields(us) {
    const offset = offsetAt(us);
    const shifted = new Date(Math.floor(us / 1000) + offset * 60000);
    return {
      year: shifted.getUTCFullYear(),
      month: shifted.getUTCMonth() + 1,
      day: shifted.getUTCDate(),
      hour: shifted.getUTCHours(),
      minute: shifted.getUTCMinutes(),
      second: shifted.getUTCSeconds(),
      weekday: shifted.getUTCDay(),
      fraction: ((us % SECOND) + SECOND) % SECOND,
      offset,
    };
  }

  /** The time at which the clock of the page shows this. */
  function timeOf(year, month, day, hour = 0, minute = 0, second = 0) {
    const made = isUtc
      ? Date.UTC(year, month - 1, day, hour, minute, second)
      : new Date(year, month - 1, day, hour, minute, second).getTime();
    return made * 1000;
  }

  function offsetText(minutes) {
    const size = Math.abs(minutes);
    return (minutes < 0 ? '-' : '+') + pad(Math.floor(size / 60)) + ':' + pad(size % 60);
  }

  const dateText = (at) => pad(at.year, 4) + '-' + pad(at.month) + '-' + pad(at.day);
  const clockText = (at) => pad(at.hour) + ':' + pad(at.minute) + ':' + pad(at.second);
  const fractionText = (us) => {
    const fraction = ((Math.round(us) % SECOND) + SECOND) % SECOND;
    return fraction === 0 ? '' : '.' + pad(fraction, 6).replace(/0+$/, '');
  };
  const WEEKDAYS = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];
  const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

  /** As everywhere in Walhalla: 2026-11-30 10:40:00+01:00; to the second. */
  function timeText(us) {
    if (us === null || us === undefined) return 'not known';
    const at = fields(us);
    return dateText(at) + ' ' + clockText(at) + offsetText(at.offset);
  }

  /** The same with the fraction of the second, for moments that a command names. */
  function exactText(us) {
    const at = fields(us);
    return dateText(at) + ' ' + clockText(at) + fractionText(us) + offsetText(at.offset);
  }

  /** The value of --target-time: UTC, with a fraction only where the moment has one. */
  function targetText(us) {
    const at = new Date(Math.floor(us / 1000));
    return at.toISOString().slice(0, 19).replace('T', ' ') + fractionText(us) + '+00';
  }

  /** Two units at most: 3 d 4 h, 12 min 5 s. */
  function durationText(us) {
    const units = [
      [365 * DAY, 'y'],
      [DAY, 'd'],
      [HOUR, 'h'],
      [MINUTE, 'min'],
      [SECOND, 's'],
    ];
    const size = Math.max(0, us);
    const first = units.findIndex(([unit]) => size >= unit);
    if (first < 0) return size >= 1000 ? Math.round(size / 1000) + ' ms' : '0 s';
    const [unit, name] = units[first];
    const whole = Math.floor(size / unit);
    const next = units[first + 1];
    const rest = next ? Math.floor((size - whole * unit) / next[0]) : 0;
    return whole + ' ' + name + (rest > 0 ? ' ' + rest + ' ' + next[1] : '');
  }

  /** What a person types: a date, a time of day, an offset if it is not the page's clock; null if it is no time. */
  function parseTyped(text) {
    const parts =
      /^(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,6}))?)?)?\s*(Z|UTC|[+-]\d\d(?::?\d\d)?)?$/i.exec(
        text.trim(),
      );
    if (!parts) return null;
    const [year, month, day, hour, minute, second] = parts.slice(1, 7).map((part) => Number(part || 0));
    const asUtc = Date.UTC(year, month - 1, day, hour, minute, second);
    const back = new Date(asUtc);
    // Date lets 31 February run on into March.
    if (back.getUTCMonth() + 1 !== month || back.getUTCDate() !== day || hour > 23 || minute > 59 || second > 59)
      return null;
    const fraction = Number((parts[7] || '').padEnd(6, '0'));
    if (!parts[8]) return timeOf(year, month, day, hour, minute, second) + fraction;
    const zone = /^([+-])(\d\d):?(\d\d)?$/.exec(parts[8]);
    const minutes = zone ? (zone[1] === '-' ? -1 : 1) * (Number(zone[2]) * 60 + Number(zone[3] || 0)) : 0;
    return asUtc * 1000 - minutes * MINUTE + fraction;
  }

  // ---------------------------------------------------------------------------------------------------- numbers

  function sizeText(bytes) {
    if (bytes === null || bytes === undefined) return 'not known';
    const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
    let value = Number(bytes);
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
      value /= 1024;
      unit += 1;
    }
    return (unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)) + ' ' + units[unit];
  }

  const countText = (number) => Number(number).toLocaleString('en');
  const counted = (number, one, many = one + 's') => countText(number) + ' ' + (Number(number) === 1 ? one : many);

  // ---------------------------------------------------------------------------------------------------- model

  /** First index of a list sorted by `key` whose key is not below `value`. */
  function lowerBound(list, value, key) {
    let low = 0;
    let high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (key(list[middle]) < value) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  const isBetween = (us, span) => us >= span.from && us < span.to;

  /** What the page works with, made of one cluster of the document. */
  function modelOf(cluster, now) {
    const lanes = lanesOf(cluster);
    const model = {
      cluster,
      now,
      lanes,
      laneOf: new Map(lanes.map((lane) => [lane.id, lane])),
      backupOf: new Map(),
      events: (cluster.events || []).map((raw, index) => ({ raw, index, at: microseconds(raw.time) })).reverse(),
    };
    for (const lane of lanes) lane.parent = model.laneOf.get(lane.raw.parent_timeline) || null;
    placeBackups(model);
    for (const lane of lanes) findBegin(lane);
    placeEvents(model);
    placeSpans(model);
    model.whole = extentOf(model);
    return model;
  }

  /** One lane for each timeline, parents first; backups of a timeline without WAL have one, too. */
  function lanesOf(cluster) {
    const raws = new Map((cluster.timelines || []).map((raw) => [Number(raw.timeline), raw]));
    for (const { timeline } of [...(cluster.backups || []), ...(cluster.events || [])]) {
      if (!raws.has(Number(timeline))) raws.set(Number(timeline), { timeline });
    }
    return [...raws.entries()]
      .sort(([a], [b]) => a - b)
      .map(([id, raw], index) => {
        const coverage = runsOf(raw);
        return {
          id,
          raw,
          index,
          coverage,
          gaps: gapsOf(raw, coverage),
          // A timeline has a higher number than its parent; anything else could lead in a circle.
          parent: null,
          begin: null,
          backups: [],
          events: [],
          reach: [],
        };
      });
  }

  /** Runs of archived WAL with both ends known, as far as the document knows them. */
  function runsOf(raw) {
    const runs = (raw.coverage || []).map((run, index, all) => {
      const isFirst = index === 0;
      const isLast = index === all.length - 1;
      const from = microseconds(run.from) ?? (isFirst ? microseconds(raw.first_commit_time) : null);
      const to = microseconds(run.to) ?? (isLast ? microseconds(raw.last_commit_time) : null);
      return { raw: run, from: from ?? to, to: to ?? from };
    });
    return runs.filter((run) => run.from !== null).sort((a, b) => a.from - b.from);
  }

  function gapsOf(raw, coverage) {
    const gaps = (raw.gaps || []).map((gap) => {
      const from = microseconds(gap.after);
      const to = microseconds(gap.before);
      // Where one edge has no commit, the gap is drawn at the other.
      return { raw: gap, from: from ?? to ?? coverage[0]?.from ?? null, to: to ?? from ?? null };
    });
    for (const gap of gaps) gap.to = gap.to ?? gap.from;
    return gaps.filter((gap) => gap.from !== null).sort((a, b) => a.from - b.from);
  }

  function placeBackups(model) {
    for (const raw of model.cluster.backups || []) {
      const stop = microseconds(raw.stop_time);
      if (stop === null) continue;
      const backup = {
        raw,
        at: stop,
        from: microseconds(raw.reachable_from) ?? stop,
        start: microseconds(raw.start_time) ?? stop,
        lane: model.laneOf.get(Number(raw.timeline)),
        isUsable: Array.isArray(raw.chain) && !raw.chain_problem,
      };
      backup.lane.backups.push(backup);
      model.backupOf.set(raw.id, backup);
    }
    for (const lane of model.lanes) lane.backups.sort((a, b) => a.from - b.from);
  }

  /** When a timeline left its parent. Without a recorded time, its first commit or backup is nearest to that. */
  function findBegin(lane) {
    if (lane.parent && lane.parent.id >= lane.id) lane.parent = null;
    const known = microseconds(lane.raw.switch_time);
    const signs = [microseconds(lane.raw.first_commit_time), lane.coverage[0]?.from, lane.backups[0]?.start];
    const guessed = signs.filter((sign) => sign !== null && sign !== undefined);
    lane.isBeginKnown = known !== null;
    lane.begin = known ?? (guessed.length ? Math.min(...guessed) : null);
  }

  function placeEvents(model) {
    for (const event of model.events) {
      event.lane = model.laneOf.get(Number(event.raw.timeline));
      if (event.at !== null) event.lane.events.push(event);
    }
    for (const lane of model.lanes) lane.events.sort((a, b) => a.at - b.at);
  }

  /** The timelines from this one to the first, each with the time at which the way leaves it. */
  function lineage(lane) {
    const way = [];
    let until = Infinity;
    for (let at = lane; at; at = at.parent) {
      way.push({ lane: at, until });
      until = at.begin === null ? until : Math.min(until, at.begin);
    }
    return way;
  }

  /** The timeline on which a time lies, on the way that leads to `lane`. */
  function laneAt(lane, us) {
    let at = lane;
    while (at.parent && at.begin !== null && us < at.begin) at = at.parent;
    return at;
  }

  /**
   * Gives each lane the spans of its own that can be reached. A span of the document belongs to the timeline that recovery
   * follows; its part before a switch lies on the parent's lane.
   */
  function placeSpans(model) {
    const spans = (model.cluster.reachable || []).map((raw) => {
      const from = microseconds(raw.from);
      return {
        raw,
        from,
        to: microseconds(raw.to) ?? from,
        timeline: Number(raw.timeline),
        missing: raw.missing || null,
      };
    });
    model.spans = spans.filter((span) => span.from !== null);
    for (const span of model.spans) spreadSpan(model, span);
    for (const lane of model.lanes) continueBranch(model, lane);
    for (const lane of model.lanes) lane.reach.sort((a, b) => a.from - b.from || b.timeline - a.timeline);
  }

  function spreadSpan(model, span) {
    const target = model.laneOf.get(span.timeline);
    if (!target) return;
    for (const { lane, until } of lineage(target)) {
      const begin = lane.parent && lane.begin !== null ? lane.begin : -Infinity;
      const part = { from: Math.max(span.from, begin), to: Math.min(span.to, until), timeline: span.timeline };
      // Only the end of the archive can be asked for without a time; the end of a part is where the next one begins.
      part.isEnd = span.to <= until && span.missing === null;
      part.missing = span.to <= until ? span.missing : null;
      if (part.from < part.to || (part.isEnd && part.from === part.to)) lane.reach.push(part);
    }
  }

  /**
   * The spans follow the newest branch. A timeline that went on after it was left is reached on its own by --target-timeline,
   * as far as its WAL goes on without a gap from a moment that can be reached.
   */
  function continueBranch(model, lane) {
    const children = model.lanes.filter((other) => other.parent === lane && other.begin !== null);
    if (!children.length || model.spans.some((span) => span.timeline === lane.id)) return;
    const left = Math.min(...children.map((child) => child.begin));
    const before = lane.reach.find((span) => span.to >= left && span.from < left);
    const run = lane.coverage.find((candidate) => candidate.from <= left && candidate.to > left);
    if (!before || !run) return;
    const isLast = run === lane.coverage[lane.coverage.length - 1];
    lane.reach.push({
      from: left,
      to: run.to,
      timeline: lane.id,
      isEnd: isLast,
      missing: isLast ? null : 'a later one',
    });
  }

  function extentOf(model) {
    const times = [model.now];
    for (const lane of model.lanes) {
      for (const list of [lane.coverage, lane.gaps, lane.reach])
        for (const item of list) times.push(item.from, item.to);
      for (const mark of [...lane.backups, ...lane.events]) times.push(mark.at);
    }
    const known = times.filter((time) => Number.isFinite(time));
    const from = known.reduce((least, time) => Math.min(least, time), Infinity);
    const to = known.reduce((most, time) => Math.max(most, time), -Infinity);
    const margin = Math.max((to - from) * 0.03, MINUTE);
    return { from: from - margin, to: to + margin };
  }

  // ---------------------------------------------------------------------------------------------------- a moment

  const covers = (span, us) => isBetween(us, span) || (span.isEnd && us === span.to);

  /** The span of a lane that reaches a time. One of the lane's own timeline comes first, then the newest. */
  function spanAt(lane, us) {
    const found = lane.reach.filter((span) => covers(span, us));
    return found.find((span) => span.timeline === lane.id) || found[0] || null;
  }

  /** All that the page says about a moment on the way to a timeline. */
  function momentOf(model, asked, us) {
    const lane = laneAt(asked, us);
    const span = spanAt(lane, us);
    const moment = { us, lane, span, isReachable: span !== null };
    if (!span) return { ...moment, reason: reasonAgainst(model, asked, lane, us), offers: offersFor(model, asked, us) };
    const { backup, passed } = backupBefore(lane, us);
    // The span ends at the last transaction. Recovery to a time needs a later one, to know that it is there.
    const isEnd = span.isEnd && us === span.to;
    return { ...moment, backup, passed, isEnd, command: commandFor(model, span, isEnd ? null : us) };
  }

  function commandFor(model, span, us) {
    const time = us === null ? '' : ` --target-time '${targetText(us)}'`;
    const timeline = model.lanes.length > 1 ? ` --target-timeline ${span.timeline}` : '';
    return model.cluster.restore_command + time + timeline + COPY_OPTIONS;
  }

  /** The newest usable backup before a time, and the newer ones that cannot be used. */
  function backupBefore(lane, us) {
    const candidates = [];
    for (const { lane: at, until } of lineage(lane)) {
      const limit = Math.min(us, until);
      for (let index = lowerBound(at.backups, limit + 1, (backup) => backup.from) - 1; index >= 0; index -= 1) {
        candidates.push(at.backups[index]);
        if (at.backups[index].isUsable) break;
      }
    }
    candidates.sort((a, b) => b.from - a.from);
    const first = candidates.findIndex((backup) => backup.isUsable);
    return { backup: candidates[first] || null, passed: first < 0 ? candidates : candidates.slice(0, first) };
  }

  /** The spans on the way to a timeline, in order of time. */
  function spansOnWay(asked) {
    const spans = [];
    for (const { lane, until } of lineage(asked)) {
      const own = lane.reach.filter((span) => span.from < until || (span.isEnd && span.to <= until));
      spans.push(
        ...own.map((span) => ({ ...span, to: Math.min(span.to, until), isEnd: span.isEnd && span.to <= until })),
      );
    }
    return spans.sort((a, b) => a.from - b.from);
  }

  /** Why a moment cannot be reached, in words for a person who has never seen a segment. */
  function reasonAgainst(model, asked, lane, us) {
    if (!(model.cluster.backups || []).length)
      return 'There is no backup of this cluster. Every restore begins with a backup.';
    const gap = lane.gaps.find((candidate) => us >= candidate.from && us < candidate.to);
    if (gap) return gapReason(gap);
    if (us > model.now) return 'This moment lies after the time at which this page was made.';
    const spans = spansOnWay(asked);
    if (!spans.length) return `No backup that can be used leads to timeline ${lane.id}.`;
    const earlier = spans.filter((span) => span.to <= us);
    const last = earlier.reduce((newest, span) => (newest && newest.to > span.to ? newest : span), null);
    const next = spans.find((span) => span.from > us);
    if (!last) {
      return (
        `This moment lies before the first backup. The first moment that can be reached on this way is ${timeText(next.from)},` +
        ' when that backup ended.'
      );
    }
    return afterSpan(last, next, lane);
  }

  function gapReason(gap) {
    const { raw } = gap;
    const names =
      raw.first === raw.last
        ? `WAL segment ${raw.first} is`
        : `${counted(raw.segments, 'WAL segment')}, ${raw.first} to ${raw.last}, are`;
    const why = raw.reason ? ` Reason: ${raw.reason}.` : '';
    return `This moment lies in a gap. ${names} missing from the archive, and recovery cannot go across a gap.${why}`;
  }

  function afterSpan(last, next, lane) {
    const end = timeText(last.to);
    if (next) {
      const what = last.missing
        ? `Recovery ends at ${end}, because WAL is missing after that`
        : `Recovery ends at ${end}`;
      return `This moment lies between a gap and the next backup. ${what}. It can begin again only with the next backup, which ended at ${timeText(next.from)}.`;
    }
    if (last.missing)
      return `This moment lies after a gap. Recovery ends at ${end}, because WAL is missing after that, and no backup was made since.`;
    return `This moment lies after the end of the archive. The last transaction that is archived on timeline ${lane.id} ended at ${end}.`;
  }

  /** Moments that can be reached instead: the nearest one on this way, and the same one on another timeline. */
  function offersFor(model, asked, us) {
    const offers = [];
    for (const other of model.lanes) {
      if (laneAt(other, us) !== laneAt(asked, us) && spanAt(laneAt(other, us), us)) {
        offers.push({ us, lane: other, words: `Same moment on timeline ${laneAt(other, us).id}` });
        break;
      }
    }
    const nearest = nearestOn(asked, us) || model.lanes.map((lane) => nearestOn(lane, us)).find((found) => found);
    if (nearest) {
      const words = nearest.isEnd ? 'Nearest moment: the end of the archive, ' : 'Nearest moment: ';
      offers.push({ ...nearest, words: words + exactText(nearest.us) });
    }
    return offers;
  }

  function nearestOn(lane, us) {
    let best = null;
    for (const span of spansOnWay(lane)) {
      const isEnd = us >= span.to && span.isEnd;
      const at = us < span.from ? span.from : isEnd ? span.to : span.to - 1;
      if (!best || Math.abs(at - us) < Math.abs(best.us - us)) best = { us: at, isEnd, lane };
    }
    return best;
  }

  /** The first or the last moment that can be reached on the way to a timeline. */
  function edgeOf(lane, isLast) {
    const spans = spansOnWay(lane);
    if (!spans.length) return null;
    if (!isLast) return spans[0].from;
    const last = spans.reduce((newest, span) => (span.to > newest.to ? span : newest));
    return last.isEnd ? last.to : last.to - 1;
  }

  // ---------------------------------------------------------------------------------------------------- state

  const state = {
    document: null,
    model: null,
    view: null,
    lane: null,
    moment: 0,
    isPinned: false,
    event: null,
    hover: null,
    marks: [],
    shownEvents: EVENTS_AT_ONCE,
  };

  // ---------------------------------------------------------------------------------------------------- axis

  const STEPS = [
    ...[1, 2, 5, 10, 15, 30].map((n) => ({ unit: 'second', n, us: n * SECOND })),
    ...[1, 2, 5, 10, 15, 30].map((n) => ({ unit: 'minute', n, us: n * MINUTE })),
    ...[1, 2, 3, 6, 12].map((n) => ({ unit: 'hour', n, us: n * HOUR })),
    // The same days, with shorter labels where the longer ones have no room.
    { unit: 'day', n: 1, us: DAY },
    { unit: 'date', n: 1, us: DAY },
    { unit: 'week', n: 1, us: 7 * DAY },
    ...[1, 3, 6].map((n) => ({ unit: 'month', n, us: n * 30.44 * DAY })),
    ...[1, 2, 5, 10, 20, 50].map((n) => ({ unit: 'year', n, us: n * 365.25 * DAY })),
  ];
  const LABEL_PX = { second: 78, minute: 62, hour: 62, day: 62, date: 30, week: 56, month: 52, year: 52 };

  function stepFor(usPerPx) {
    return STEPS.find((step) => step.us / usPerPx >= LABEL_PX[step.unit]) || STEPS[STEPS.length - 1];
  }

  /** The ticks of a view, on the round times of the page's clock. */
  function ticksOf(view, step) {
    if (step.us < DAY) return ticksInDay(view, step);
    const at = fields(view.from);
    const ticks = [];
    for (let k = 0; k < 2000; k += 1) {
      const tick = calendarTick(at, step, k);
      if (tick > view.to) break;
      if (tick >= view.from) ticks.push(tick);
    }
    return ticks;
  }

  function calendarTick(at, step, k) {
    if (step.unit === 'day' || step.unit === 'date') return timeOf(at.year, at.month, at.day + k);
    if (step.unit === 'week') return timeOf(at.year, at.month, at.day - ((at.weekday + 6) % 7) + 7 * k);
    if (step.unit === 'month') return timeOf(at.year, 1 + Math.floor((at.month - 1) / step.n) * step.n + k * step.n, 1);
    return timeOf(Math.floor(at.year / step.n) * step.n + k * step.n, 1, 1);
  }

  /** Offsets of clocks are multiples of 15 minutes: every round hour, also of a day with 23 or 25, is among these. */
  function ticksInDay(view, step) {
    const grid = Math.min(step.us, 15 * MINUTE);
    const ticks = [];
    for (let tick = Math.ceil(view.from / grid) * grid; tick <= view.to; tick += grid) {
      const local = tick + offsetAt(tick) * MINUTE;
      if ((((local % DAY) + DAY) % DAY) % step.us === 0) ticks.push(tick);
    }
    return ticks;
  }

  function tickText(us, step) {
    const at = fields(us);
    if (step.unit === 'second') return clockText(at);
    if (step.us < DAY) return pad(at.hour) + ':' + pad(at.minute);
    if (step.unit === 'day') return WEEKDAYS[at.weekday] + ' ' + at.day;
    if (step.unit === 'date') return String(at.day);
    if (step.unit === 'week') return at.day + ' ' + MONTHS[at.month - 1];
    if (step.unit === 'month') return MONTHS[at.month - 1];
    return String(at.year);
  }

  /** The larger unit that a tick lies in, for the second row of the axis. */
  function contextText(us, step) {
    const at = fields(us);
    if (step.us < DAY) return WEEKDAYS[at.weekday] + ' ' + dateText(at);
    if (['day', 'date', 'week'].includes(step.unit)) return MONTHS[at.month - 1] + ' ' + at.year;
    return step.unit === 'month' ? String(at.year) : '';
  }

  /** The offset of the axis, both where the clocks change in the view. */
  function zoneText(view) {
    const ends = [...new Set([offsetAt(view.from), offsetAt(view.to)])].map(offsetText);
    return 'UTC' + (isUtc ? '' : ends.join(' and '));
  }

  // ---------------------------------------------------------------------------------------------------- picture

  const AXIS_PX = 44;
  const svgRoot = byId('drawing');
  const picture = byId('picture');
  let cursorLayer = null;

  const widthPx = () => Math.max(picture.clientWidth, 100);
  const usPerPx = () => (state.view.to - state.view.from) / widthPx();
  const xOf = (us) => (us - state.view.from) / usPerPx();
  const timeAtX = (x) => state.view.from + x * usPerPx();

  /** Rows of a lane, from its top. Few lanes get more room. */
  function layout() {
    const count = state.model.lanes.length;
    const height = count <= 2 ? 140 : count <= 5 ? 108 : 96;
    const middle = Math.round(height * 0.5);
    return {
      height,
      name: 16,
      event: middle - 19,
      bar: middle,
      barHeight: 12,
      backup: middle + (height > 100 ? 34 : 31),
    };
  }

  const laneTop = (lane) => AXIS_PX + lane.index * layout().height;

  let isRenderDue = false;
  function renderSoon() {
    if (isRenderDue) return;
    isRenderDue = true;
    requestAnimationFrame(() => {
      isRenderDue = false;
      renderPicture();
    });
  }

  /** Draws what lies in the view, and nothing else. */
  function renderPicture() {
    const { model, view } = state;
    const width = widthPx();
    const height = AXIS_PX + Math.max(model.lanes.length, 1) * layout().height;
    state.marks = [];
    cursorLayer = svg('g');
    const lanes = model.lanes.map((lane) => drawLane(lane, width));
    svgRoot.setAttribute('viewBox', `0 0 ${width} ${height}`);
    svgRoot.setAttribute('height', height);
    svgRoot.replaceChildren(
      definitions(),
      drawAxis(width, height),
      ...model.lanes.map(drawBranch),
      drawChains(model),
      ...lanes,
      drawNow(height),
      drawZone(width),
      cursorLayer,
    );
    renderCursor();
    byId('shown').textContent = `${durationText(view.to - view.from)} shown`;
    for (const button of byId('presets').children) {
      button.setAttribute('aria-pressed', String(isPreset(button.dataset.span)));
    }
    byId('zoom-in').disabled = view.to - view.from <= NARROWEST_VIEW;
    byId('zoom-out').disabled = isWidest();
  }

  function definitions() {
    return svg(
      'defs',
      {},
      svg(
        'pattern',
        { id: 'hatch', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
        svg('line', { x1: 0, y1: 0, x2: 0, y2: 6, class: 'hatch' }),
      ),
      svg(
        'pattern',
        { id: 'dense', width: 4, height: 4, patternUnits: 'userSpaceOnUse' },
        svg('rect', { x: 0, y: 0, width: 1.2, height: 4, class: 'gap-line' }),
      ),
    );
  }

  function drawAxis(width, height) {
    const { view } = state;
    const step = stepFor(usPerPx());
    const group = svg('g', {}, svg('rect', { x: 0, y: 0, width, height: AXIS_PX, class: 'axis-ground' }));
    const ticks = ticksOf(view, step);
    drawContexts(group, ticks, step, width);
    for (const tick of ticks) {
      const x = xOf(tick);
      group.append(svg('line', { x1: x, x2: x, y1: AXIS_PX - 5, y2: height, class: 'grid' }));
      // A label that would be cut by an edge says something else.
      if (x > 24 && x < width - 24) {
        group.append(
          svg('text', { x, y: 36, 'text-anchor': 'middle', text: tickText(tick, step), 'data-part': 'tick' }),
        );
      }
    }
    return group;
  }

  /** Below the axis, because a date can need the whole of it. */
  function drawZone(width) {
    return svg('text', {
      x: width - 8,
      y: AXIS_PX + 16,
      'text-anchor': 'end',
      class: 'zone',
      text: `times in ${zoneText(state.view)}`,
      'data-part': 'zone',
    });
  }

  /** The first context stands at the left edge, each other one where it begins, if there is room. */
  function drawContexts(group, ticks, step, width) {
    let shown = contextText(state.view.from, step);
    let end = 8;
    const put = (x, text) => {
      group.append(svg('text', { x, y: 17, class: 'context', text, 'data-part': 'context' }));
      end = x + text.length * 7.2 + 12;
    };
    const changes = ticks.filter(
      (tick, index) => contextText(tick, step) !== (index ? contextText(ticks[index - 1], step) : shown),
    );
    const first = changes.length ? xOf(changes[0]) : Infinity;
    if (shown && first > shown.length * 7.2 + 20) put(8, shown);
    for (const tick of changes) {
      const text = contextText(tick, step);
      const x = xOf(tick) + 4;
      if (text && x >= end && x + text.length * 7.2 < width) put(x, text);
      shown = text;
    }
  }

  function drawLane(lane, width) {
    const rows = layout();
    const top = laneTop(lane);
    const group = svg('g', { 'data-lane': lane.id });
    group.append(svg('line', { x1: 0, x2: width, y1: top + rows.height, y2: top + rows.height, class: 'lane-rule' }));
    const name = svg('text', { x: 8, y: top + rows.name, class: 'lane-name', text: `Timeline ${lane.id}` });
    if (lane.parent)
      name.append(
        svg('tspan', { class: 'lane-origin', text: `  from timeline ${lane.parent.id}`, 'font-weight': 400 }),
      );
    group.append(...drawRuns(lane, top + rows.bar, rows), ...drawGaps(lane, top + rows.bar, rows));
    group.append(...drawBackups(lane, top + rows.backup), ...drawEvents(lane, top + rows.event, top + rows.bar), name);
    return group;
  }

  /** Spans joined where less than `room` pixels lie between them, cut to the view. `filled` is what the spans alone take. */
  function visibleBoxes(spans, room, least) {
    const width = widthPx();
    const boxes = [];
    for (const span of spans) {
      const left = xOf(span.from);
      const own = xOf(span.to) - left;
      const right = left + Math.max(own, least);
      if (right < -10 || left > width + 10) continue;
      const last = boxes[boxes.length - 1];
      if (!last || left - last.right >= room) {
        boxes.push({ left, right, count: 1, filled: own });
        continue;
      }
      last.right = Math.max(last.right, right);
      last.count += 1;
      last.filled += own;
    }
    return boxes.map((box) => ({ ...box, left: Math.max(box.left, -10), right: Math.min(box.right, width + 10) }));
  }

  function drawRuns(lane, y, rows) {
    const box =
      (name, inset, least) =>
      ({ left, right }) =>
        svg('rect', {
          x: left,
          y: y + inset,
          width: Math.max(right - left, least),
          height: rows.barHeight - 2 * inset,
          class: name,
          rx: 1.5,
        });
    return [
      ...visibleBoxes(lane.coverage, 1, 2).map(box('wal', 0, 2)),
      ...visibleBoxes(lane.reach, 0.5, 3).map(box('reach', 0, 3)),
    ];
  }

  /**
   * A gap that stands alone is never thinner than a person can see, however far the view is zoomed out. Many that lie close
   * together are lines, so that what can be reached between them stays in sight.
   */
  function drawGaps(lane, y, rows) {
    const boxes = visibleBoxes(lane.gaps, 0, 1.2);
    return boxes.flatMap((box, index) => {
      const isAlone = !(box.left - boxes[index - 1]?.right < 12) && !(boxes[index + 1]?.left - box.right < 12);
      const isDense = box.count > 1 && box.filled < (box.right - box.left) / 2;
      if (isDense) return [gapBox(box, y, rows, 'gap-dense')];
      if (!isAlone && box.right - box.left < 5) return [gapBox(box, y, rows, 'gap-line')];
      return aloneGap(box, y, rows, isAlone);
    });
  }

  const gapBox = ({ left, right }, y, rows, name) =>
    svg('rect', { x: left, y: y - 3, width: right - left, height: rows.barHeight + 6, class: name });

  function aloneGap({ left, right }, y, rows, hasSign) {
    const middle = (left + right) / 2;
    const half = Math.max(right - left, 5) / 2;
    const box = { left: middle - half, right: middle + half };
    const below = y + rows.barHeight + 8;
    const sign = svg('path', { d: `M${middle - 3} ${below - 3}l6 6m0 -6l-6 6`, class: 'gap-sign' });
    return [gapBox(box, y, rows, 'gap-ground'), gapBox(box, y, rows, 'gap'), ...(hasSign ? [sign] : [])];
  }

  /**
   * Marks in groups: those nearer than a few pixels to the one before are one, and no group is much wider than its sign.
   * The list is sorted, so that only what the view holds is looked at.
   */
  function groupsOf(marks) {
    const margin = 60 * usPerPx();
    const groups = [];
    let index = lowerBound(marks, state.view.from - margin, (mark) => mark.at);
    for (; index < marks.length && marks[index].at <= state.view.to + margin; index += 1) {
      const x = xOf(marks[index].at);
      const last = groups[groups.length - 1];
      if (last && x - last.last < 15 && x - last.first < 56) {
        last.last = x;
        last.items.push(marks[index]);
      } else {
        groups.push({ first: x, last: x, items: [marks[index]] });
      }
    }
    return apart(groups);
  }

  /** Joins groups whose signs would lie over each other. */
  function apart(groups) {
    const joined = [];
    for (const group of groups) {
      const last = joined[joined.length - 1];
      const middle = (group.first + group.last) / 2;
      if (last && middle - halfWidth(group.items) < (last.first + last.last) / 2 + halfWidth(last.items) + 1) {
        last.last = group.last;
        last.items.push(...group.items);
      } else {
        joined.push(group);
      }
    }
    for (const group of joined) group.x = (group.first + group.last) / 2;
    return joined;
  }

  function drawBackups(lane, y) {
    // A backup of the same lane is drawn at its end, and sorted by it.
    lane.byEnd = lane.byEnd || [...lane.backups].sort((a, b) => a.at - b.at);
    for (const backup of lane.byEnd) backup.place = null;
    const groups = groupsOf(lane.byEnd);
    for (const group of groups) {
      for (const backup of group.items) backup.place = { x: group.x, y };
      state.marks.push({ ...group, y, lane, kind: 'backup' });
    }
    return groups.map(({ items, x }) =>
      items.length > 1 ? manySign(x, y, items, 'backup') : backupSign(items[0].raw, items[0].isUsable, x, y),
    );
  }

  function backupSign(raw, isUsable, x, y) {
    const group = svg('g');
    if (raw.kind === 'delta') group.append(svg('path', { d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z`, class: 'delta' }));
    else group.append(svg('rect', { x: x - 5, y: y - 5, width: 10, height: 10, class: 'full' }));
    if (raw.permanent) group.append(svg('circle', { cx: x, cy: y, r: 10, class: 'permanent' }));
    if (!isUsable) group.append(svg('path', { d: `M${x - 8} ${y - 8}l16 16m0 -16l-16 16`, class: 'unusable' }));
    return group;
  }

  /** The number of marks in one place; a drop among events keeps its triangle. */
  function manyText(items) {
    const hasDrop = items.some((item) => String(item?.raw.kind).startsWith('drop'));
    return (hasDrop ? '▼' : '') + (items.length > 999 ? Math.floor(items.length / 1000) + 'k' : items.length);
  }

  const halfWidth = (items) => (items.length > 1 ? 6 + manyText(items).length * 3.7 : 7);

  function manySign(x, y, items, kind) {
    const half = halfWidth(items);
    return svg(
      'g',
      {},
      svg('rect', {
        x: x - half,
        y: y - 8,
        width: 2 * half,
        height: 16,
        rx: 8,
        class: kind === 'event' ? 'many of-events' : 'many',
      }),
      svg('text', { x, y: y + 4, class: 'many-text', text: manyText(items) }),
    );
  }

  /** Lines from deltas to their parents. Those between the same two signs are one. */
  function drawChains(model) {
    const group = svg('g');
    const drawn = new Set();
    const margin = 60 * usPerPx();
    for (const lane of model.lanes) {
      const y = laneTop(lane) + layout().backup;
      const from = lowerBound(lane.byEnd, state.view.from - margin, (backup) => backup.at);
      for (let index = from; index < lane.byEnd.length; index += 1) {
        const backup = lane.byEnd[index];
        const parent = backup.raw.parent ? model.backupOf.get(backup.raw.parent) : null;
        // The line of the first delta right of the view can still come from within it.
        if (parent && parent.at <= state.view.to)
          drawChain(group, drawn, placeOf(parent), backup.place || { x: xOf(backup.at), y });
        if (backup.at > state.view.to + margin) break;
      }
    }
    return group;
  }

  const placeOf = (backup) => backup.place || { x: xOf(backup.at), y: laneTop(backup.lane) + layout().backup };

  function drawChain(group, drawn, parent, child) {
    const key = [parent.x, parent.y, child.x, child.y].map(Math.round).join();
    if (drawn.has(key) || (parent.x === child.x && parent.y === child.y)) return;
    drawn.add(key);
    const left = Math.max(parent.x, -2000);
    const bow = parent.y === child.y ? Math.min(14, 4 + Math.abs(child.x - left) / 8) : 0;
    group.append(
      svg('path', {
        d: `M${left.toFixed(1)} ${parent.y}C${left.toFixed(1)} ${parent.y + bow} ${child.x.toFixed(1)} ${child.y + bow} ${child.x.toFixed(1)} ${child.y}`,
        class: 'chain',
      }),
    );
  }

  const EVENT_WORDS = {
    drop: 'Table dropped',
    truncate: 'Table emptied',
    rewrite: 'Table rewritten',
    cut: 'Table cut',
    drop_database: 'Database dropped',
    restore_point: 'Restore point',
  };
  const eventWord = (kind) => (Object.hasOwn(EVENT_WORDS, kind) ? EVENT_WORDS[kind] : String(kind));

  function drawEvents(lane, y, bar) {
    const groups = groupsOf(lane.events);
    for (const group of groups) state.marks.push({ ...group, y, lane, kind: 'event' });
    return groups.map(({ items, x }) =>
      svg(
        'g',
        {},
        svg('line', { x1: x, x2: x, y1: y + 6, y2: bar, class: 'stem' }),
        items.length > 1 ? manySign(x, y, items, 'event') : eventSign(items[0].raw.kind, x, y),
      ),
    );
  }

  /** Each kind has a shape of its own: the colour is the same for all. */
  function eventSign(kind, x, y) {
    const down = `M${x - 7} ${y - 6}h14l-7 12z`;
    const shapes = {
      drop: [['path', { d: down, class: 'event-solid' }]],
      drop_database: [
        ['path', { d: down, class: 'event-solid' }],
        ['line', { x1: x - 8, x2: x + 8, y1: y - 9, y2: y - 9, class: 'event-solid' }],
      ],
      truncate: [['path', { d: down, class: 'event-open' }]],
      rewrite: [['circle', { cx: x, cy: y, r: 5.5, class: 'event-open' }]],
      cut: [['path', { d: `M${x - 6} ${y - 5}h12v10h-12zM${x} ${y - 5}v10`, class: 'event-open' }]],
      restore_point: [['path', { d: `M${x - 4} ${y + 7}v-14l11 4.5l-11 4.5z`, class: 'event-open' }]],
    };
    const parts = Object.hasOwn(shapes, kind)
      ? shapes[kind]
      : [['circle', { cx: x, cy: y, r: 4, class: 'event-solid' }]];
    return svg('g', {}, ...parts.map(([tag, attributes]) => svg(tag, attributes)));
  }

  function drawBranch(lane) {
    const group = svg('g');
    if (!lane.parent || lane.begin === null) return group;
    const x = xOf(lane.begin);
    if (x < -20 || x > widthPx() + 20) return group;
    const rows = layout();
    const from = laneTop(lane.parent) + rows.bar + rows.barHeight;
    const to = laneTop(lane) + rows.bar + rows.barHeight / 2;
    group.append(svg('path', { d: `M${x} ${from}V${to - 8}q0 8 8 8`, class: 'branch' }));
    return group;
  }

  function drawNow(height) {
    const x = xOf(state.model.now);
    const group = svg('g');
    if (x > 0 && x < widthPx()) {
      group.append(svg('line', { x1: x, x2: x, y1: AXIS_PX, y2: height, class: 'now' }));
    }
    return group;
  }

  /** The cursor has a layer of its own: the pointer moves it without the rest being drawn anew. */
  function renderCursor() {
    if (!cursorLayer) return;
    const parts = [];
    if (state.hover && (state.isPinned || state.event))
      parts.push(...cursorParts(state.hover.us, state.hover.lane, 'cursor is-hover'));
    parts.push(...cursorParts(state.moment, state.lane, 'cursor'));
    if (state.event) parts.push(...chosenParts(state.event));
    cursorLayer.replaceChildren(...parts);
  }

  function cursorParts(us, asked, name) {
    const x = xOf(us);
    if (!asked || x < -1 || x > widthPx() + 1) return [];
    const rows = layout();
    const y = laneTop(laneAt(asked, us)) + rows.bar + rows.barHeight / 2;
    const height = AXIS_PX + state.model.lanes.length * rows.height;
    return [
      svg('line', { x1: x, x2: x, y1: AXIS_PX, y2: height, class: name }),
      svg('circle', { cx: x, cy: y, r: 6, class: 'cursor-sign' }),
    ];
  }

  function chosenParts(event) {
    const mark = state.marks.find((candidate) => candidate.kind === 'event' && candidate.items.includes(event));
    return mark ? [svg('circle', { cx: mark.x, cy: mark.y, r: 14, class: 'chosen' })] : [];
  }

  // ---------------------------------------------------------------------------------------------------- view

  const PRESETS = [
    ['all', 'All', null],
    ['365d', '1 y', 365 * DAY],
    ['30d', '30 d', 30 * DAY],
    ['7d', '7 d', 7 * DAY],
    ['24h', '24 h', DAY],
    ['1h', '1 h', HOUR],
  ];

  const isWidest = () => state.view.from <= state.model.whole.from && state.view.to >= state.model.whole.to;

  function isPreset(id) {
    const [, , span] = PRESETS.find(([name]) => name === id);
    return span === null ? isWidest() : Math.abs(state.view.to - state.view.from - span) < span * 0.001;
  }

  /** Shows a stretch of time, within what there is. */
  function show(from, to) {
    const { whole } = state.model;
    const span = Math.min(Math.max(to - from, NARROWEST_VIEW), whole.to - whole.from);
    // Half a view beyond either end keeps the ends in reach of the middle.
    const slack = span >= whole.to - whole.from ? 0 : span / 2;
    const middle = (from + to) / 2;
    const begin = Math.min(Math.max(middle - span / 2, whole.from - slack), whole.to + slack - span);
    state.view = { from: begin, to: begin + span };
    renderSoon();
  }

  function zoom(factor, anchor) {
    const { from, to } = state.view;
    const span = Math.min(
      Math.max((to - from) * factor, NARROWEST_VIEW),
      state.model.whole.to - state.model.whole.from,
    );
    const share = (anchor - from) / (to - from);
    show(anchor - share * span, anchor + (1 - share) * span);
  }

  /** Buttons and keys zoom around the moment if it is in sight. */
  function anchorTime() {
    const { from, to } = state.view;
    return isBetween(state.moment, state.view) ? state.moment : (from + to) / 2;
  }

  /** A preset shows the newest stretch of that length, or the one around a moment that was chosen. */
  function showPreset(id) {
    const [, , span] = PRESETS.find(([name]) => name === id);
    const { whole, now } = state.model;
    if (span === null) show(whole.from, whole.to);
    else if (state.isPinned || state.event) show(state.moment - span / 2, state.moment + span / 2);
    else show(now - span * 0.95, now + span * 0.05);
  }

  function bringIntoView(us) {
    const { from, to } = state.view;
    const margin = (to - from) * 0.04;
    if (us >= from + margin && us <= to - margin) return;
    show(us - (to - from) / 2, us + (to - from) / 2);
  }

  /** The roundest time that is about as exact as a pixel; at least whole seconds. */
  function snapped(us, px = 1) {
    const wanted = usPerPx() * px;
    const step = [...STEPS].reverse().find((candidate) => candidate.us <= DAY && candidate.us <= wanted) || STEPS[0];
    const local = us + offsetAt(us) * MINUTE;
    return Math.round(Math.round(local / step.us) * step.us - offsetAt(us) * MINUTE);
  }

  // ---------------------------------------------------------------------------------------------------- moment panel

  /** Chooses a moment. The panel stays as it is until something else is chosen, if it is pinned. */
  function choose(us, lane, { isPinned = true, title = null } = {}) {
    Object.assign(state, { moment: us, lane, isPinned, event: null, title });
    renderMoment();
    renderCursor();
    markChosenEvent();
  }

  function chooseEvent(event) {
    Object.assign(state, { event, isPinned: true, title: null, lane: event.lane });
    if (event.at !== null) {
      state.moment = event.at;
      bringIntoView(event.at);
    }
    renderMoment();
    renderCursor();
    markChosenEvent();
  }

  function renderMoment() {
    const { model, lane } = state;
    byId('spoken').textContent = '';
    byId('release').hidden = !state.isPinned;
    byId('lane').value = lane ? String(lane.id) : '';
    if (!lane) {
      renderNoMoment();
      return;
    }
    if (state.event) {
      renderEventMoment(state.event);
      return;
    }
    const moment = momentOf(model, lane, state.moment);
    byId('moment-heading').textContent = state.title || (state.isPinned ? 'Pinned moment' : 'Moment under the pointer');
    renderWhen(state.moment);
    renderVerdict(moment.isReachable, moment.isReachable ? 'Can be reached' : 'Cannot be reached');
    byId('moment-reason').textContent = moment.reason || endWords(moment);
    renderOffers(moment.offers || []);
    renderFacts(moment);
    renderCommand(moment.command || null);
    renderSlider(moment);
  }

  const endWords = (moment) =>
    moment.isEnd
      ? 'This is the end of the archive: the command has no time, so the copy gets everything that is archived.'
      : 'The copy holds everything that was committed until this moment.';

  function renderNoMoment() {
    byId('moment-heading').textContent = 'No moment can be reached';
    byId('moment-time').textContent = '';
    byId('moment-verdict').textContent = '';
    byId('moment-reason').textContent = 'The archive holds neither WAL nor a backup of this cluster.';
    renderOffers([]);
    byId('moment-facts').replaceChildren();
    renderCommand(null);
    for (const name of ['aria-valuemin', 'aria-valuemax', 'aria-valuenow']) picture.setAttribute(name, 0);
    picture.setAttribute('aria-valuetext', 'no moment can be reached');
  }

  function renderWhen(us) {
    const when = byId('moment-time');
    when.replaceChildren();
    if (us === null) {
      when.textContent = 'Time not known';
      return;
    }
    const other = isUtc ? '' : ` ${targetText(us)}:00`;
    when.append(`${WEEKDAYS[fields(us).weekday]} ${exactText(us)} `);
    if (other) when.append(element('small', { text: `in UTC:${other}` }));
  }

  function renderVerdict(isGood, words) {
    const verdict = byId('moment-verdict');
    verdict.className = 'verdict ' + (isGood ? 'is-ok' : 'is-critical');
    verdict.textContent = (isGood ? '✓ ' : '✕ ') + words;
  }

  function renderOffers(offers) {
    byId('moment-offers').replaceChildren(
      ...offers.map((offer) =>
        element('button', {
          type: 'button',
          text: offer.words,
          onclick() {
            choose(offer.us, offer.lane);
            bringIntoView(offer.us);
            byId('moment-heading').focus();
          },
        }),
      ),
    );
  }

  function fact(name, value) {
    return [element('dt', { text: name }), element('dd', { text: value })];
  }

  function renderFacts(moment) {
    const list = byId('moment-facts');
    const { backup } = moment;
    if (!moment.isReachable) {
      list.replaceChildren();
      return;
    }
    const facts = [];
    if (backup) {
      const chain = backup.raw.chain || [];
      facts.push(
        ...fact(
          'From backup',
          `${backup.raw.id} (${backup.raw.kind}${chain.length > 1 ? `, with ${counted(chain.length - 1, 'backup')} that it builds on` : ''}), ended ${timeText(backup.at)}`,
        ),
      );
      facts.push(...fact('WAL after it', walWords(moment.us - backup.at)));
      if (backup.raw.corrupt_blocks > 0)
        facts.push(
          ...fact(
            'Attention',
            `${counted(backup.raw.corrupt_blocks, 'block')} of this backup had a wrong checksum when it was made`,
          ),
        );
    }
    for (const passed of moment.passed.slice(0, 2)) {
      facts.push(
        ...fact(
          'Not used',
          `backup ${passed.raw.id} is newer${passed.raw.chain_problem ? ': ' + passed.raw.chain_problem : ', but cannot be used'}`,
        ),
      );
    }
    if (state.model.lanes.length > 1) facts.push(...fact('Timeline', timelineWords(moment)));
    list.replaceChildren(...facts);
  }

  /** Days, as the time that recovery takes grows with them; short stretches in words. */
  function walWords(us) {
    const days = us / DAY;
    return us < DAY ? durationText(us) : `${days < 10 ? days.toFixed(1) : Math.round(days)} days (${durationText(us)})`;
  }

  function timelineWords({ lane, span }) {
    return lane.id === span.timeline
      ? String(lane.id)
      : `${lane.id}; recovery follows timeline ${span.timeline}, which comes from it`;
  }

  function renderEventMoment(event) {
    const { raw, at, lane } = event;
    byId('moment-heading').textContent = `Just before: ${raw.detail}`;
    renderWhen(at);
    const moment = at === null ? null : momentOf(state.model, lane, at);
    renderVerdict(
      Boolean(raw.restore_before),
      raw.restore_before ? 'The moment just before can be reached' : 'The moment just before cannot be reached',
    );
    byId('moment-reason').textContent = raw.restore_before
      ? 'The command stops just before this event. The copy holds everything that was committed before it.'
      : moment?.reason || 'The WAL between a backup and this event is not whole.';
    renderOffers(raw.restore_before ? [] : moment?.offers || []);
    if (raw.restore_before && moment?.isReachable) renderFacts(moment);
    else byId('moment-facts').replaceChildren();
    renderCommand(raw.restore_before || null);
    if (moment) renderSlider(moment);
  }

  function renderCommand(command) {
    byId('moment-command').hidden = command === null;
    // A line breaks between words, not at a hyphen within one, as somebody may read it from one screen and type it on another.
    byId('command').replaceChildren(
      ...(command || '').split(/( +)/).map((word) => (word.startsWith(' ') ? word : element('span', { text: word }))),
    );
    const note = byId('command-note');
    note.replaceChildren('Run it on the host that is to hold the copy, as the user who runs PostgreSQL. ');
    if (!command || !command.includes(COPY_OPTIONS)) return;
    note.append(
      element('code', { text: '--target-action promote' }),
      ' opens the copy for writing as soon as it has reached the moment, and ',
      element('code', { text: '--archive-mode off' }),
      ' keeps it from archiving: it is a copy to look at, and nothing of it gets into the archive of your server.',
    );
  }

  function renderSlider(moment) {
    const { whole } = state.model;
    picture.setAttribute('aria-valuemin', Math.floor(whole.from / SECOND));
    picture.setAttribute('aria-valuemax', Math.ceil(whole.to / SECOND));
    picture.setAttribute('aria-valuenow', Math.round(moment.us / SECOND));
    const on = state.model.lanes.length > 1 ? `, timeline ${moment.lane.id}` : '';
    picture.setAttribute(
      'aria-valuetext',
      `${exactText(moment.us)}${on}: ${moment.isReachable ? 'can be reached' : 'cannot be reached'}`,
    );
  }

  /** The newest moment that can be reached: what most restores want. */
  function chooseNewest() {
    const lanes = [...state.model.lanes].reverse();
    const ends = lanes.map((lane) => ({ lane, us: edgeOf(lane, true) })).filter(({ us }) => us !== null);
    const newest = ends[0];
    if (newest) choose(newest.us, newest.lane, { isPinned: false, title: 'Newest moment' });
    else choose(Math.round(state.model.now), lanes[0] || null, { isPinned: false, title: 'Now' });
  }

  // ---------------------------------------------------------------------------------------------------- copying

  async function copyCommand() {
    const text = byId('command').textContent;
    let isCopied = false;
    try {
      await navigator.clipboard.writeText(text);
      isCopied = true;
    } catch {
      // No permission, or a page from a place that the browser does not trust.
      isCopied = copySelected();
    }
    const spoken = byId('spoken');
    // Said anew also when it was said before.
    spoken.textContent = '';
    setTimeout(() => {
      spoken.textContent = isCopied
        ? 'Copied to the clipboard.'
        : 'The command is selected. Press Ctrl+C (on a Mac Command+C) to copy it.';
    }, 30);
  }

  /** Selects the command, and copies it where the browser still does that; it stays selected otherwise. */
  function copySelected() {
    const range = document.createRange();
    range.selectNodeContents(byId('command'));
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    try {
      return document.execCommand('copy');
    } catch {
      return false;
    }
  }

  // ---------------------------------------------------------------------------------------------------- pointer and keys

  const pointers = new Map();
  let drag = null;
  let wheelOutsideAt = -Infinity;

  function placeIn(event) {
    const box = svgRoot.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  /** The lane under the pointer; where that one is blank, the newest that holds something at the time. */
  function laneAtPlace({ x, y }) {
    const { lanes } = state.model;
    const index = Math.floor((y - AXIS_PX) / layout().height);
    const lane = lanes[Math.min(Math.max(index, 0), lanes.length - 1)] || null;
    const us = timeAtX(x);
    if (!lane || isBetween(us, ownExtent(lane))) return lane;
    return [...lanes].reverse().find((other) => isBetween(us, ownExtent(other))) || lane;
  }

  /** From the first to the last thing on a lane. */
  function ownExtent(lane) {
    if (!lane.extent) {
      const items = [...lane.coverage, ...lane.gaps, ...lane.reach];
      const from = [lane.begin ?? Infinity, ...items.map((item) => item.from)];
      lane.extent = { from: Math.min(...from), to: Math.max(-Infinity, ...items.map((item) => item.to)) };
    }
    return lane.extent;
  }

  function markAt({ x, y }) {
    const near = state.marks.filter((mark) => Math.abs(mark.x - x) < 14 && Math.abs(mark.y - y) < 13);
    return near.sort((a, b) => Math.abs(a.x - x) - Math.abs(b.x - x))[0] || null;
  }

  function onPointerDown(event) {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, placeIn(event));
    drag = { start: placeIn(event), view: { ...state.view }, isMoved: pointers.size > 1, apart: pinchDistance() };
    picture.setPointerCapture(event.pointerId);
  }

  const pinchDistance = () => {
    const [a, b] = [...pointers.values()];
    return b ? Math.max(Math.abs(a.x - b.x), 10) : null;
  };

  function onPointerMove(event) {
    const place = placeIn(event);
    if (!pointers.has(event.pointerId)) {
      hoverAt(place);
      return;
    }
    pointers.set(event.pointerId, place);
    if (drag.apart) {
      pinch();
      return;
    }
    if (!drag.isMoved && Math.abs(place.x - drag.start.x) < 5) return;
    drag.isMoved = true;
    picture.classList.add('is-dragged');
    hideTip();
    const shift = ((place.x - drag.start.x) * (drag.view.to - drag.view.from)) / widthPx();
    show(drag.view.from - shift, drag.view.to - shift);
  }

  function pinch() {
    const [a, b] = [...pointers.values()];
    const { from, to } = drag.view;
    const share = (a.x + b.x) / 2 / widthPx();
    const span = ((to - from) * drag.apart) / pinchDistance();
    const anchor = from + share * (to - from);
    show(anchor - share * span, anchor + (1 - share) * span);
  }

  function onPointerUp(event) {
    const isClick = drag && !drag.isMoved && pointers.has(event.pointerId) && event.type === 'pointerup';
    pointers.delete(event.pointerId);
    picture.classList.remove('is-dragged');
    if (isClick) clickAt(placeIn(event));
    // A finger that stays after a pinch goes on as a drag.
    const [rest] = [...pointers.values()];
    drag = rest ? { start: rest, view: { ...state.view }, isMoved: true, apart: null } : null;
  }

  function clickAt(place) {
    const mark = markAt(place);
    if (mark && mark.items.length > 1) {
      openGroup(mark);
      return;
    }
    if (mark && mark.kind === 'event') {
      chooseEvent(mark.items[0]);
      return;
    }
    const lane = laneAtPlace(place);
    if (!lane) return;
    if (mark) choose(mark.items[0].from, mark.lane, { title: `End of backup ${mark.items[0].raw.id}` });
    else choose(snapped(timeAtX(place.x)), lane);
  }

  /** Zooms until the marks of a group come apart; marks of one moment never do, so the newest is chosen. */
  function openGroup(mark) {
    const from = mark.items[0].at;
    const to = mark.items[mark.items.length - 1].at;
    const newest = mark.items[mark.items.length - 1];
    if (to - from > NARROWEST_VIEW / 100) show(from - (to - from) * 0.3 - SECOND, to + (to - from) * 0.3 + SECOND);
    else if (mark.kind === 'event') chooseEvent(newest);
    else choose(newest.from, mark.lane, { title: `End of backup ${newest.raw.id}` });
  }

  function hoverAt(place) {
    const asked = laneAtPlace(place);
    if (!asked) return;
    const us = snapped(timeAtX(place.x));
    state.hover = { us, lane: asked };
    if (state.isPinned) renderCursor();
    else choose(us, asked, { isPinned: false });
    showTip(place, us, asked, markAt(place));
  }

  function showTip(place, us, asked, mark) {
    const tip = byId('tip');
    const moment = momentOf(state.model, asked, us);
    tip.replaceChildren(
      element('strong', { text: timeText(us) }),
      ...(mark
        ? markLines(mark)
        : [element('span', { text: moment.isReachable ? '✓ can be reached' : '✕ cannot be reached' })]),
    );
    tip.hidden = false;
    const left = place.x + 14 + tip.offsetWidth > widthPx() ? place.x - tip.offsetWidth - 14 : place.x + 14;
    tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(AXIS_PX, place.y - tip.offsetHeight - 12)}px)`;
  }

  function markLines({ kind, items }) {
    const lines = items
      .slice(-3)
      .map((item) => element('div', { text: kind === 'event' ? item.raw.detail : backupWords(item.raw) }));
    const rest = items.length - lines.length;
    return rest > 0 ? [...lines, element('div', { text: `and ${countText(rest)} more: a click zooms in` })] : lines;
  }

  const backupWords = (raw) =>
    `${raw.permanent ? 'permanent ' : ''}${raw.kind} backup ${raw.id}${raw.label ? `, “${raw.label}”` : ''}${raw.chain_problem ? `: ${raw.chain_problem}` : ''}`;

  function hideTip() {
    byId('tip').hidden = true;
    state.hover = null;
    renderCursor();
  }

  /** The wheel zooms, but a page that is being scrolled goes on scrolling when the picture comes under the pointer. */
  function onWheel(event) {
    const isSideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    if (event.timeStamp - wheelOutsideAt < 350) {
      wheelOutsideAt = event.timeStamp;
      return;
    }
    const scale = event.deltaMode === 1 ? 16 : 1;
    const { from, to } = state.view;
    if (isSideways) {
      const shift = (event.deltaX || event.deltaY) * scale * usPerPx();
      show(from + shift, to + shift);
    } else {
      const isAtLimit = event.deltaY > 0 ? isWidest() : to - from <= NARROWEST_VIEW;
      if (isAtLimit && !event.ctrlKey) return;
      zoom(Math.exp(Math.max(-120, Math.min(120, event.deltaY * scale)) / 300), timeAtX(placeIn(event).x));
    }
    event.preventDefault();
  }

  function moveCursor(direction, isSmall) {
    const px = isSmall ? 1 : 8;
    const step =
      [...STEPS].reverse().find((candidate) => candidate.us <= DAY && candidate.us <= usPerPx() * px) || STEPS[0];
    const from = state.moment;
    // From an uneven moment the first step goes to the next round one.
    const even = snapped(from, px);
    const isEven = even === from;
    const onward = (even - from) * direction > 0 ? even : even + direction * step.us;
    go(isEven ? from + direction * step.us : onward);
  }

  function go(us, lane = state.lane) {
    if (us === null || us === undefined || !lane) return;
    const { whole } = state.model;
    const within = Math.round(Math.min(Math.max(us, whole.from), whole.to));
    choose(within, lane);
    bringIntoView(within);
  }

  function changeLane(direction) {
    const { lanes } = state.model;
    const lane = lanes[lanes.indexOf(laneAt(state.lane, state.moment)) + direction];
    if (!lane) return;
    // A timeline does not reach back before its begin: there the moment would still be its parent's.
    go(lane.parent && lane.begin !== null ? Math.max(state.moment, lane.begin) : state.moment, lane);
  }

  /** The event before or after the moment, on any timeline. */
  function stepToEvent(direction) {
    const timed = state.model.events.filter((event) => event.at !== null);
    const ordered = timed.sort((a, b) => a.at - b.at || a.index - b.index);
    const current = state.event ? ordered.indexOf(state.event) : -1;
    const next =
      current >= 0
        ? ordered[current + direction]
        : direction > 0
          ? ordered.find((event) => event.at > state.moment)
          : ordered.filter((event) => event.at < state.moment).pop();
    if (next) chooseEvent(next);
  }

  const KEYS = {
    ArrowLeft: (event) => moveCursor(-1, event.shiftKey),
    ArrowRight: (event) => moveCursor(1, event.shiftKey),
    ArrowUp: () => changeLane(-1),
    ArrowDown: () => changeLane(1),
    PageUp: () => stepToEvent(-1),
    PageDown: () => stepToEvent(1),
    Home: () => go(edgeOf(state.lane, false)),
    End: () => go(edgeOf(state.lane, true)),
    '+': () => zoom(0.5, anchorTime()),
    '=': () => zoom(0.5, anchorTime()),
    '-': () => zoom(2, anchorTime()),
    Escape: () => release(),
    Enter: () => byId('copy').focus(),
  };

  function onKey(event) {
    const action = KEYS[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey || !state.lane) return;
    event.preventDefault();
    action(event);
  }

  function release() {
    if (state.event || state.isPinned) choose(state.moment, state.lane, { isPinned: false });
  }

  // ---------------------------------------------------------------------------------------------------- head and figures

  const STATES = {
    ok: { words: 'OK', sign: '✓' },
    warning: { words: 'Warning', sign: '!' },
    critical: { words: 'Critical', sign: '✕' },
  };
  const RANK = { ok: 0, warning: 1, critical: 2 };
  const stateOf = (name) => (Object.hasOwn(STATES, name) ? name : 'critical');

  function renderHead() {
    const { document: status } = state;
    const made = microseconds(status.time);
    const age = Date.now() * 1000 - made;
    const old = age > HOUR ? `, ${durationText(age)} ago. A new page shows what happened since.` : '';
    byId('made').textContent = `${status.store}, made ${timeText(made)}${old}`;
    byId('version').textContent =
      `Made by walhalla ${status.walhalla_version}. This page loads nothing and sends nothing.`;
    byId('zone-local').textContent = `Local (UTC${offsetText(-new Date(made / 1000).getTimezoneOffset())})`;
  }

  function renderTimeField() {
    byId('time-label').textContent = isUtc ? 'Time in UTC' : 'Time';
    byId('time').placeholder = timeText(state.model.now).slice(0, 19);
  }

  function renderState() {
    const { cluster } = state.model;
    const name = stateOf(cluster.state);
    const problems = cluster.problems || [];
    byId('state').className = `state ${name}`;
    const count = problems.length
      ? `: ${counted(problems.length, 'problem')}`
      : name === 'ok'
        ? ': no problem is known'
        : '';
    byId('state-heading').textContent = `${STATES[name].sign} ${STATES[name].words}${count}`;
    byId('state-cluster').textContent = `Cluster ${cluster.system_identifier}, PostgreSQL ${cluster.postgres_version}`;
    byId('problems').hidden = problems.length === 0;
    byId('problems').replaceChildren(...problems.map(problemItem));
  }

  function problemItem(problem) {
    const name = stateOf(problem.severity);
    const words = element('span', { text: problem.what });
    if (problem.hint) words.append(element('span', { className: 'hint', text: problem.hint }));
    return element(
      'li',
      {},
      element('span', { className: `severity is-${name}`, text: `${STATES[name].sign} ${STATES[name].words}` }),
      words,
    );
  }

  function renderClusters() {
    const { clusters } = state.document;
    const nav = byId('clusters');
    nav.hidden = clusters.length < 2;
    nav.replaceChildren(
      element(
        'ul',
        {},
        ...clusters.map((cluster) => {
          const name = stateOf(cluster.state);
          const button = element(
            'button',
            {
              type: 'button',
              onclick: () => {
                showCluster(cluster);
              },
            },
            element('span', { className: `is-${name}`, text: `${STATES[name].sign} ${STATES[name].words}` }),
            element('span', { text: cluster.system_identifier }),
            element('small', { text: `PostgreSQL ${cluster.postgres_version}` }),
          );
          if (state.model && state.model.cluster === cluster) button.setAttribute('aria-current', 'true');
          return element('li', {}, button);
        }),
      ),
    );
  }

  function tile(name, figure, under, mark = null) {
    const value = element('div', {
      className: `figure${mark ? ` is-${mark}` : ''}`,
      text: (mark && mark !== 'ok' ? `${STATES[mark].sign} ` : '') + figure,
    });
    const lines = []
      .concat(under || [])
      .map((line) => (typeof line === 'string' ? element('div', { className: 'under', text: line }) : line));
    return element('div', { className: 'tile' }, element('dt', { text: name }), element('dd', {}, value, ...lines));
  }

  const ago = (us) => `${durationText(state.model.now - us)} ago`;

  function renderTiles() {
    const { cluster } = state.model;
    const tiles = [
      windowTile(),
      newestTile(cluster),
      archivingTile(cluster.archiving || {}),
      gapsTile(),
      chainTile(cluster),
      storeTile(cluster.store_bytes || {}),
      verifyTile(cluster.last_verify),
      drillTile(cluster.last_drill),
      mirrorTile(cluster.mirror),
    ];
    tiles[5].classList.add('wide');
    byId('tiles').replaceChildren(...tiles);
  }

  function windowTile() {
    const { spans } = state.model;
    if (!spans.length) return tile('Recovery window', 'None', 'No moment can be restored.', 'critical');
    const from = Math.min(...spans.map((span) => span.from));
    const to = Math.max(...spans.map((span) => span.to));
    const parts = spans.length > 1 ? [`in ${countText(spans.length)} spans`] : [];
    return tile('Recovery window', durationText(lengthOf(spans)), [
      `from ${timeText(from)}`,
      `to ${timeText(to)}`,
      ...parts,
    ]);
  }

  /** The time that spans cover together: what two timelines hold counts once, what lies between them does not. */
  function lengthOf(spans) {
    let length = 0;
    let reached = -Infinity;
    for (const { from, to } of [...spans].sort((a, b) => a.from - b.from)) {
      length += Math.max(0, to - Math.max(from, reached));
      reached = Math.max(reached, to);
    }
    return length;
  }

  function newestTile({ newest_backup: newest }) {
    if (!newest) return tile('Newest backup', 'None', 'Make one with walhalla backup-push.', 'critical');
    return tile('Newest backup', `${durationText(newest.age_seconds * SECOND)} old`, [
      `${newest.kind} ${newest.id}`,
      `ended ${timeText(microseconds(newest.stop_time))}`,
    ]);
  }

  function archivingTile(archiving) {
    const last = microseconds(archiving.last_archived_time);
    const waiting = archiving.ready_segments;
    const known = waiting === null || waiting === undefined;
    const lines = [];
    if (!known)
      lines.push(
        waiting === 0 ? 'no segment waits' : `${counted(waiting, 'segment')} ${waiting === 1 ? 'waits' : 'wait'}`,
      );
    if (archiving.last_segment) lines.push(`last: ${archiving.last_segment}`);
    if (archiving.failures) lines.push(counted(archiving.failures, 'failure'));
    return tile('Last archived', last === null ? 'Not known' : ago(last), lines, archiving.failures ? 'warning' : null);
  }

  function gapsTile() {
    const gaps = state.model.lanes.flatMap((lane) => lane.raw.gaps || []);
    const segments = gaps.reduce((sum, gap) => sum + Number(gap.segments || 0), 0);
    return gaps.length
      ? tile('Gaps in the WAL', countText(gaps.length), `${counted(segments, 'segment')} missing`, 'warning')
      : tile('Gaps in the WAL', 'None');
  }

  function chainTile(cluster) {
    const backups = cluster.backups || [];
    const fulls = backups.filter((backup) => backup.kind === 'full').length;
    const permanent = backups.filter((backup) => backup.permanent).length;
    const lines = [`${counted(fulls, 'full backup')}, ${counted(backups.length - fulls, 'delta')}`];
    if (permanent) lines.push(`${countText(permanent)} permanent`);
    return tile('Longest chain', counted(cluster.longest_chain || 0, 'backup'), lines);
  }

  function storeTile(bytes) {
    const kinds = [
      ['backups', 'Backups'],
      ['wal', 'WAL'],
      ['summaries', 'Summaries'],
      ['other', 'Other'],
    ];
    const total = kinds.reduce((sum, [kind]) => sum + Number(bytes[kind] || 0), 0);
    const bar = element('div', { className: 'bar', 'aria-hidden': 'true' });
    const key = element('div', { className: 'key under' });
    kinds.forEach(([kind, name], index) => {
      const size = Number(bytes[kind] || 0);
      const part = element('i', { className: `k${index}` });
      part.style.flexGrow = total ? size / total : 0;
      if (size > 0) bar.append(part);
      key.append(
        element(
          'span',
          {},
          element('i', { className: `k${index}`, 'aria-hidden': 'true' }),
          `${name} ${sizeText(size)}`,
        ),
      );
    });
    return tile('Size of the store', sizeText(total), [bar, key]);
  }

  function resultTile(name, result, lines) {
    if (!result) return tile(name, 'Never', lines);
    const isGood = result.result === 'ok';
    return tile(name, isGood ? 'OK' : 'Failed', [ago(microseconds(result.time)), ...lines], isGood ? 'ok' : 'critical');
  }

  const verifyTile = (verify) =>
    resultTile(
      'Last verify',
      verify,
      verify ? [`by walhalla ${verify.kind}`] : ['walhalla verify reads backups and WAL.'],
    );

  function drillTile(drill) {
    if (!drill) return resultTile('Last drill', null, ['walhalla drill tries a restore.']);
    const seconds = (value) => (value === null || value === undefined ? 'not known' : durationText(value * SECOND));
    return resultTile('Last drill', drill, [
      `restored in ${seconds(drill.rto_seconds)} (RTO)`,
      `data loss ${seconds(drill.rpo_seconds)} (RPO)`,
    ]);
  }

  function mirrorTile(mirror) {
    if (!mirror) return tile('Mirror', 'None', 'No second store is set.');
    const owed = [];
    if (mirror.owed_wal) owed.push(counted(mirror.owed_wal, 'WAL file'));
    if (mirror.owed_backups) owed.push(counted(mirror.owed_backups, 'backup'));
    const since = microseconds(mirror.since);
    const lines = [mirror.store];
    if (owed.length) lines.unshift(`lacks ${owed.join(' and ')}${since === null ? '' : `, since ${timeText(since)}`}`);
    return tile('Mirror', owed.length ? 'Behind' : 'Complete', lines, owed.length ? 'warning' : 'ok');
  }

  // ---------------------------------------------------------------------------------------------------- events

  function matchingEvents() {
    const words = byId('search')
      .value.toLowerCase()
      .split(/\s+/)
      .filter((word) => word);
    const kind = byId('kind').value;
    return state.model.events.filter((event) => {
      if (kind && event.raw.kind !== kind) return false;
      const text =
        `${event.raw.detail} ${eventWord(event.raw.kind)} ${event.at === null ? '' : timeText(event.at)} ${event.raw.xid}`.toLowerCase();
      // What has no known name may be what is looked for.
      return event.raw.detail.includes('without a known name') || words.every((word) => text.includes(word));
    });
  }

  function renderEvents() {
    const found = matchingEvents();
    const shown = found.slice(0, state.shownEvents);
    const all = state.model.events.length;
    byId('event-count').textContent =
      all === 0
        ? 'No drops, truncations or restore points are known.'
        : found.length === all
          ? `${counted(all, 'event')}, newest first`
          : `${countText(found.length)} of ${counted(all, 'event')}, newest first`;
    byId('event-list').replaceChildren(...shown.map(eventItem));
    const more = byId('more-events');
    more.hidden = found.length <= shown.length;
    more.textContent = `Show ${countText(Math.min(EVENTS_AT_ONCE, found.length - shown.length))} more`;
    markChosenEvent();
  }

  function eventItem(event) {
    const { raw, at } = event;
    const id = `event-${event.index}`;
    const icon = svg('svg', { width: 20, height: 20, 'aria-hidden': 'true' }, eventSign(raw.kind, 10, 11));
    const timeline = state.model.lanes.length > 1 ? `, timeline ${raw.timeline}` : '';
    const what = element(
      'span',
      { className: 'what', id },
      element('span', { text: raw.detail }),
      element('span', {
        className: 'at',
        text: `${eventWord(raw.kind)}, ${at === null ? 'time not known' : timeText(at)}${timeline}`,
      }),
    );
    const button = element('button', {
      type: 'button',
      text: raw.restore_before ? 'Command for just before this' : 'Why no command?',
      'aria-describedby': id,
      // Focus by keyboard shows the command already. One by a mouse must not: the button could move away before the click.
      onfocus: ({ target }) => {
        if (state.event !== event && target.matches(':focus-visible')) chooseEvent(event);
      },
      onclick() {
        chooseEvent(event);
        byId('moment-heading').focus();
        byId('moment').scrollIntoView({ block: 'nearest' });
      },
    });
    const item = element('li', {}, icon, what, button);
    item.walhallaEvent = event;
    return item;
  }

  function markChosenEvent() {
    for (const item of byId('event-list').children)
      item.classList.toggle('is-chosen', item.walhallaEvent === state.event);
  }

  function renderKinds() {
    const kinds = [...new Set(state.model.events.map((event) => event.raw.kind))].sort();
    byId('kind').replaceChildren(
      element('option', { value: '', text: 'All kinds' }),
      ...kinds.map((kind) => element('option', { value: kind, text: eventWord(kind) })),
    );
  }

  function renderLegend() {
    const sign = (child) => svg('svg', { width: 22, height: 22, 'aria-hidden': 'true' }, definitions(), child);
    const bar = (name) => sign(svg('rect', { x: 1, y: 5, width: 20, height: 12, class: name }));
    const items = [
      [bar('reach'), 'every moment can be reached'],
      [bar('wal'), 'WAL that no backup leads to'],
      [bar('gap'), 'gap in the WAL'],
      [sign(backupSign({ kind: 'full' }, true, 11, 11)), 'full backup'],
      [sign(backupSign({ kind: 'delta' }, true, 11, 11)), 'delta, with a line to its parent'],
      [sign(backupSign({ kind: 'full', permanent: true }, true, 11, 11)), 'permanent backup'],
      [sign(backupSign({ kind: 'full' }, false, 11, 11)), 'backup that cannot be used'],
      ...[...new Set(state.model.events.map((event) => event.raw.kind))]
        .sort()
        .map((kind) => [sign(eventSign(kind, 11, 11)), eventWord(kind).toLowerCase()]),
      [sign(manySign(11, 11, Array(3), 'backup')), 'so many of them: a click zooms in'],
    ];
    byId('legend').replaceChildren(...items.map(([icon, words]) => element('li', {}, icon, words)));
  }

  // ---------------------------------------------------------------------------------------------------- tables

  const ROWS_AT_ONCE = 100;

  /** A table behind a heading. Its rows are made when it is opened, a hundred at a time. */
  function tableSection(name, caption, columns, rows) {
    const details = element(
      'details',
      { 'data-table': name },
      element(
        'summary',
        {},
        element('strong', { text: name }),
        element('span', { text: ` (${countText(rows.length)})` }),
      ),
    );
    details.addEventListener('toggle', () => {
      if (details.open && details.children.length === 1) details.append(tableOf(name, caption, columns, rows));
    });
    return details;
  }

  function tableOf(name, caption, columns, rows) {
    const body = element('tbody');
    const box = element(
      'div',
      { className: 'scroll', tabindex: '0', role: 'region', 'aria-label': `Table of ${name.toLowerCase()}` },
      element(
        'table',
        {},
        element('caption', { text: caption }),
        element(
          'thead',
          {},
          element(
            'tr',
            {},
            ...columns.map((column) => element('th', { scope: 'col', text: column.name, className: column.style })),
          ),
        ),
        body,
      ),
    );
    const more = element('button', { type: 'button', onclick: () => addRows() });
    const addRows = () => {
      const from = body.children.length;
      body.append(...rows.slice(from, from + ROWS_AT_ONCE).map((row) => tableRow(columns, row)));
      const rest = rows.length - body.children.length;
      more.textContent =
        rest > ROWS_AT_ONCE ? `Show ${ROWS_AT_ONCE} more of ${countText(rest)}` : `Show the other ${countText(rest)}`;
      more.hidden = rest === 0;
    };
    addRows();
    box.append(more);
    return box;
  }

  const tableRow = (columns, row) =>
    element(
      'tr',
      {},
      ...columns.map((column, index) => {
        const value = column.value(row);
        return element(index === 0 ? 'th' : 'td', {
          scope: index === 0 ? 'row' : null,
          className: column.style,
          text: value === null || value === undefined ? '' : String(value),
        });
      }),
    );

  const column = (name, value, style = null) => ({ name, value, style });
  const timeColumn = (name, value) => column(name, (row) => timeText(value(row)));

  function renderTables() {
    byId('table-list').replaceChildren(
      spansTable(),
      backupsTable(),
      gapsTable(),
      coverageTable(),
      timelinesTable(),
      eventsTable(),
    );
  }

  function spansTable() {
    return tableSection(
      'Reachable spans',
      'Within each span every moment can be restored.',
      [
        timeColumn('From', (span) => span.from),
        timeColumn('To', (span) => span.to),
        column('Length', (span) => durationText(span.to - span.from)),
        column('Timeline', (span) => span.timeline, 'number'),
        column(
          'What ends it',
          (span) => (span.missing ? `WAL segment ${span.missing} is missing` : 'nothing is archived after it yet'),
          'long',
        ),
      ],
      [...state.model.spans].reverse(),
    );
  }

  function backupsTable() {
    const backups = [...(state.model.cluster.backups || [])].reverse();
    return tableSection(
      'Backups',
      'All backups of this cluster, newest first.',
      [
        column('Backup', (row) => row.id, 'mono'),
        column('Kind', (row) => row.kind + (row.permanent ? ', permanent' : '')),
        timeColumn('Ended', (row) => microseconds(row.stop_time)),
        column('Took', (row) => durationText(microseconds(row.stop_time) - microseconds(row.start_time))),
        column('Timeline', (row) => row.timeline, 'number'),
        column('Size', (row) => sizeText(row.size_bytes), 'number'),
        column('Stored', (row) => sizeText(row.stored_bytes), 'number'),
        column('Chain', (row) => (row.chain ? row.chain.length : 'not whole'), 'number'),
        column('Parent', (row) => row.parent || '', 'mono'),
        column('Remarks', backupRemarks, 'long'),
      ],
      backups,
    );
  }

  function backupRemarks(row) {
    const remarks = [];
    if (row.label) remarks.push(`“${row.label}”`);
    if (row.chain_problem) remarks.push(row.chain_problem);
    if (row.corrupt_blocks > 0) remarks.push(`${counted(row.corrupt_blocks, 'corrupt block')}`);
    return remarks.join('; ');
  }

  function gapsTable() {
    const rows = state.model.lanes.flatMap((lane) =>
      (lane.raw.gaps || []).map((gap) => ({ ...gap, timeline: lane.id })),
    );
    return tableSection(
      'Gaps',
      'WAL segments that are missing between archived ones. Recovery cannot go across a gap.',
      [
        column('First missing', (row) => row.first, 'mono'),
        column('Last missing', (row) => row.last, 'mono'),
        column('Segments', (row) => countText(row.segments), 'number'),
        column('Timeline', (row) => row.timeline, 'number'),
        timeColumn('Last commit before', (row) => microseconds(row.after)),
        timeColumn('First commit after', (row) => microseconds(row.before)),
        column('Reason', (row) => row.reason || 'not known', 'long'),
      ],
      rows,
    );
  }

  function coverageTable() {
    const rows = state.model.lanes
      .flatMap((lane) => (lane.raw.coverage || []).map((run) => ({ ...run, timeline: lane.id })))
      .reverse();
    return tableSection(
      'WAL coverage',
      'Runs of archived WAL without a gap, newest first.',
      [
        column('First segment', (row) => row.first, 'mono'),
        column('Last segment', (row) => row.last, 'mono'),
        column('Segments', (row) => countText(row.segments), 'number'),
        column('Timeline', (row) => row.timeline, 'number'),
        timeColumn('First commit', (row) => microseconds(row.from)),
        timeColumn('Last commit', (row) => microseconds(row.to)),
      ],
      rows,
    );
  }

  function timelinesTable() {
    return tableSection(
      'Timelines',
      'A new timeline begins at each promotion and each restore.',
      [
        column('Timeline', (lane) => lane.id),
        column('Parent', (lane) => lane.raw.parent_timeline ?? 'none', 'number'),
        column('Left it at', (lane) => lane.raw.switch_lsn || ''),
        column('Left it when', (lane) => (lane.parent ? timeText(microseconds(lane.raw.switch_time)) : '')),
        column('Segments', (lane) => countText(lane.raw.segments || 0), 'number'),
        column('Stored', (lane) => sizeText(lane.raw.stored_bytes || 0), 'number'),
        timeColumn('First commit', (lane) => microseconds(lane.raw.first_commit_time)),
        timeColumn('Last commit', (lane) => microseconds(lane.raw.last_commit_time)),
      ],
      state.model.lanes,
    );
  }

  function eventsTable() {
    return tableSection(
      'Events',
      'Drops, truncations and restore points, newest first.',
      [
        timeColumn('Time', (event) => event.at),
        column('Kind', (event) => eventWord(event.raw.kind)),
        column('What', (event) => event.raw.detail, 'long'),
        column('Timeline', (event) => event.raw.timeline, 'number'),
        column('LSN', (event) => event.raw.lsn, 'mono'),
        column('Transaction', (event) => event.raw.xid || '', 'number'),
        column(
          'Command for just before',
          (event) => event.raw.restore_before || 'none: it cannot be reached',
          'long mono',
        ),
      ],
      state.model.events,
    );
  }

  // ---------------------------------------------------------------------------------------------------- begin

  function showCluster(cluster) {
    state.model = modelOf(cluster, microseconds(state.document.time) ?? Date.now() * 1000);
    Object.assign(state, { view: { ...state.model.whole }, event: null, shownEvents: EVENTS_AT_ONCE, hover: null });
    byId('search').value = '';
    picture.closest('.frame').hidden = state.model.lanes.length === 0;
    byId('lane-choice').hidden = state.model.lanes.length < 2;
    byId('lane').replaceChildren(
      ...state.model.lanes.map((lane) => element('option', { value: lane.id, text: String(lane.id) })),
    );
    renderKinds();
    chooseNewest();
    renderAll();
  }

  /** Everything that shows a time: for another cluster, and for another clock. */
  function renderAll() {
    renderHead();
    renderTimeField();
    renderClusters();
    renderState();
    renderTiles();
    renderLegend();
    renderMoment();
    renderPicture();
    renderEvents();
    renderTables();
  }

  function chooseTheme(name) {
    const isDark = name === 'dark' || (name !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches);
    document.documentElement.dataset.theme = isDark ? 'dark' : 'light';
  }

  function listenToSwitches() {
    const theme = ['light', 'dark'].includes(memory.get('theme')) ? memory.get('theme') : 'auto';
    document.querySelector(`input[name=theme][value=${theme}]`).checked = true;
    document.querySelector(`input[name=zone][value=${isUtc ? 'utc' : 'local'}]`).checked = true;
    byId('switches').hidden = false;
    const chosenTheme = () => document.querySelector('input[name=theme]:checked').value;
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => chooseTheme(chosenTheme()));
    byId('switches').addEventListener('change', ({ target }) => {
      memory.set(target.name, target.value);
      if (target.name === 'theme') {
        chooseTheme(target.value);
        return;
      }
      isUtc = target.value === 'utc';
      if (state.model) renderAll();
      else renderHead();
    });
  }

  function listenToPicture() {
    picture.addEventListener('pointerdown', onPointerDown);
    picture.addEventListener('pointermove', onPointerMove);
    picture.addEventListener('pointerup', onPointerUp);
    picture.addEventListener('pointercancel', onPointerUp);
    picture.addEventListener('pointerleave', hideTip);
    picture.addEventListener('wheel', onWheel, { passive: false });
    picture.addEventListener('keydown', onKey);
    document.addEventListener(
      'wheel',
      (event) => {
        if (!picture.contains(event.target)) wheelOutsideAt = event.timeStamp;
      },
      { passive: true },
    );
    new ResizeObserver(renderSoon).observe(picture);
    byId('zoom-in').addEventListener('click', () => zoom(0.5, anchorTime()));
    byId('zoom-out').addEventListener('click', () => zoom(2, anchorTime()));
    byId('presets').replaceChildren(
      ...PRESETS.map(([id, words]) =>
        element('button', { type: 'button', text: words, 'data-span': id, onclick: () => showPreset(id) }),
      ),
    );
  }

  function listenToFields() {
    byId('goto').addEventListener('submit', (event) => {
      event.preventDefault();
      goToTyped();
    });
    byId('lane').addEventListener('change', ({ target }) =>
      go(state.moment, state.model.laneOf.get(Number(target.value))),
    );
    // The command for the newest moment would be the wrong one to copy: it restores what is there after the drop.
    byId('find-event').addEventListener('click', () => {
      const drop = state.model.events.find((event) => String(event.raw.kind).startsWith('drop'));
      if (drop) chooseEvent(drop);
    });
    byId('copy').addEventListener('click', copyCommand);
    byId('look').addEventListener('click', () => show(state.moment - HOUR / 2, state.moment + HOUR / 2));
    byId('release').addEventListener('click', () => {
      release();
      picture.focus();
    });
    byId('search').addEventListener('input', () => {
      state.shownEvents = EVENTS_AT_ONCE;
      renderEvents();
    });
    byId('kind').addEventListener('change', () => {
      state.shownEvents = EVENTS_AT_ONCE;
      renderEvents();
    });
    byId('more-events').addEventListener('click', () => {
      const first = state.shownEvents;
      state.shownEvents += EVENTS_AT_ONCE;
      renderEvents();
      byId('event-list').children[first]?.querySelector('button').focus();
    });
  }

  function goToTyped() {
    const us = parseTyped(byId('time').value);
    byId('time').setAttribute('aria-invalid', String(us === null));
    byId('time-problem').textContent =
      us === null ? 'Write the time as 2026-11-30 10:40:00, if need be with an offset: 2026-11-30 10:40:00+01:00.' : '';
    if (us === null || !state.lane) return;
    // Also beyond what the picture shows: the reason why it cannot be reached is what was asked for.
    choose(us, state.lane);
    bringIntoView(us);
  }

  function renderEmpty() {
    renderHead();
    const place = element(
      'section',
      { className: 'state warning', 'aria-labelledby': 'empty-heading' },
      element('h2', { id: 'empty-heading', text: '! Nothing is archived yet' }),
      element('p', {
        text: 'The store holds no cluster. Set archive_command to walhalla wal-push, and make the first backup with walhalla backup-push. Then make this page again.',
      }),
    );
    byId('main').replaceChildren(place);
  }

  function begin() {
    chooseTheme(memory.get('theme'));
    state.document = JSON.parse(byId('status').textContent);
    const clusters = state.document.clusters || [];
    byId('main').hidden = false;
    listenToSwitches();
    if (!clusters.length) {
      renderEmpty();
      return;
    }
    byId('jump').hidden = false;
    listenToPicture();
    listenToFields();
    // The one that needs a person comes first.
    showCluster(
      clusters.reduce((worst, cluster) =>
        RANK[stateOf(cluster.state)] > RANK[stateOf(worst.state)] ? cluster : worst,
      ),
    );
  }

  begin();
})();
