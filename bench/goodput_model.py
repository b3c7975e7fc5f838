"""Models of a server that gets calls with deadlines.

The server of a model does one microsecond of work each microsecond, can switch
between calls at no cost, and needs for a call exactly its `work`. A call that
has not ended at its deadline is worth nothing. So what a model reaches is the
most that a scheduler with its rule could reach.
"""

import bisect
import heapq
import math
import random
import typing


class Call(typing.NamedTuple):
  at: int  # microseconds
  work: int  # microseconds
  deadline: int  # the time, not the length
  size: int = 0  # which of the bench's sizes it has


def arrivals(seed, seconds, load, works, slack):
  """Returns calls at the times of a Poisson process. Each has one of the sizes,
  whose work is `works`, with the same probability. Their work is `load` times
  what the server can do. The deadline of a call is `slack` times its work."""
  rng = random.Random(seed)
  mean_gap = sum(works) / len(works) / load
  calls = []
  at = rng.expovariate(1 / mean_gap)
  while at < seconds * 1e6:
    size = rng.randrange(len(works))
    calls.append(Call(int(at), works[size], int(at + slack * works[size]),
                      size))
    at += rng.expovariate(1 / mean_gap)
  return calls


def run_by_deadline(waiting, calls, now, end):
  """Runs `waiting`, a heap of (deadline, work left), and `calls`, which arrive
  in this order, from `now` to `end`, the nearest deadline first. This order
  keeps all deadlines if any order can. Returns what is left, or None if a
  deadline was missed."""
  waiting = list(waiting)
  next_call = 0
  while now < end:
    while next_call < len(calls) and calls[next_call].at <= now:
      call = calls[next_call]
      heapq.heappush(waiting, (call.deadline, call.work))
      next_call += 1
    until = calls[next_call].at if next_call < len(calls) else end
    if not waiting:
      now = until
      continue
    deadline, left = waiting[0]
    if now + min(left, until - now) > deadline:
      return None
    if now + left <= until:
      now += left
      heapq.heappop(waiting)
    else:
      heapq.heapreplace(waiting, (deadline, left - (until - now)))
      now = until
  return sorted(waiting)


def select(calls, order):
  """Goes through `calls` in `order`, and takes each that can end in time beside
  those taken before. Returns the work of those taken.

  Time is cut into slices, and what is left to do at the start of each is kept.
  So a further call means to run only those slices again that it changes."""
  if not calls:
    return 0
  last = max(call.deadline for call in calls)
  length = max(call.deadline - call.at for call in calls) // 4 + 1
  count = last // length + 2
  taken = [[] for _ in range(count)]  # by the slice of the arrival
  left = [[] for _ in range(count + 1)]  # at the start of each slice
  work = 0
  for call in sorted(calls, key=order):
    first = call.at // length
    bisect.insort(taken[first], call)
    state, changed = left[first], {}
    for i in range(first, count):
      state = run_by_deadline(state, taken[i], i * length, (i + 1) * length)
      if state is None or state == left[i + 1]:
        break
      changed[i + 1] = state
    if state is None:
      taken[first].remove(call)
      continue
    for i, new in changed.items():
      left[i] = new
    work += call.work
  return work


def best_reachable(calls):
  """Returns the work that could end in time for a server that knows all calls
  in advance: the most that three ways to choose calls reach, which are in the
  order of arrival, large calls first, and small calls first. The chosen calls
  then run by deadline, which is the best order for them. To choose the best set
  of calls is NP-hard, so a set with a little more work may exist. Nothing
  reaches more than all the work or the length of the run."""
  return max(select(calls, order) for order in (
      lambda call: call.at, lambda call: -call.work, lambda call: call.work))


def shared_processor(calls):
  """Returns the work that ends in time for a server that admits all calls and
  divides its time equally among them, until they end or their deadlines
  pass."""
  ends, deadlines, running = [], [], set()
  done, now, progress, next_call = 0, 0.0, 0.0, 0
  while running or next_call < len(calls):
    while ends and ends[0][1] not in running:
      heapq.heappop(ends)
    while deadlines and deadlines[0][1] not in running:
      heapq.heappop(deadlines)
    arrival = calls[next_call].at if next_call < len(calls) else math.inf
    end = now + (ends[0][0] - progress) * len(running) if ends else math.inf
    end = max(end, now)
    deadline = deadlines[0][0] if deadlines else math.inf
    then = min(arrival, end, deadline)
    if running:
      progress += (then - now) / len(running)
    now = then
    if then == end:
      number = heapq.heappop(ends)[1]
      running.remove(number)
      done += calls[number].work
    elif then == arrival:
      call = calls[next_call]
      running.add(next_call)
      heapq.heappush(ends, (progress + call.work, next_call))
      heapq.heappush(deadlines, (call.deadline, next_call))
      next_call += 1
    else:
      running.remove(heapq.heappop(deadlines)[1])
  return done
