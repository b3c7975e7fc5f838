#!/usr/bin/env python3
"""Checks the models in bench/goodput_model.py against all subsets of few calls.

usage: goodput_model_test.py REPOSITORY
"""

import itertools
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(sys.argv[1]) / 'bench'))

import goodput_model as model  # noqa: E402


def can_all_end(calls):
  calls = sorted(calls)
  end = max((call.deadline for call in calls), default=0) + 1
  return model.run_by_deadline([], calls, 0, end) == []


def most_work(calls):
  """Returns the most work of a subset that can end in time."""
  return max(sum(call.work for call in subset)
             for count in range(len(calls) + 1)
             for subset in itertools.combinations(calls, count)
             if can_all_end(subset))


def few_calls(rng):
  calls = []
  for _ in range(rng.randrange(1, 9)):
    at, work = rng.randrange(100), rng.randrange(1, 40)
    calls.append(model.Call(at, work, at + rng.randrange(work, 4 * work + 1)))
  return sorted(calls)


def check_best():
  rng = random.Random(1)
  reached = total = 0
  for _ in range(300):
    calls = few_calls(rng)
    best, most = model.best_reachable(calls), most_work(calls)
    assert best <= most, (best, most, calls)
    reached, total = reached + best, total + most
  assert reached >= 0.97 * total, (reached, total)


def check_shared_processor():
  call = model.Call
  # Both take twice as long beside each other.
  assert model.shared_processor([call(0, 10, 20), call(0, 10, 20)]) == 20
  assert model.shared_processor([call(0, 10, 19), call(0, 10, 19)]) == 0
  # The second one has the processor for itself when the first one is over.
  assert model.shared_processor([call(0, 4, 8), call(0, 10, 14)]) == 14
  assert model.shared_processor([call(0, 10, 5), call(0, 10, 13)]) == 10


def check_arrivals():
  calls = model.arrivals(1, 100, 2, [1000, 3000], 4)
  work = sum(call.work for call in calls)
  assert abs(work / 100e6 - 2) < 0.1, work
  assert all(call.deadline - call.at in (4000, 12000) for call in calls)
  assert calls == model.arrivals(1, 100, 2, [1000, 3000], 4)
  # Nothing is lost where there is enough time for everything.
  rare = model.arrivals(1, 100, 0.01, [1000], 400)
  assert model.best_reachable(rare) == 1000 * len(rare)
  assert model.shared_processor(rare) == 1000 * len(rare)


check_best()
check_shared_processor()
check_arrivals()
