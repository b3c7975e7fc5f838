#include "core/job_queue.h"

#include <algorithm>
#include <utility>

namespace attnd {
namespace {

using Duration = JobQueue::Duration;

// For so long, a caller's jobs with deadlines are not looked at again.
constexpr Duration kRefresh = std::chrono::milliseconds(2);

// The most time that the aged jobs of a caller can be behind their share.
// Without a limit, a job that was not ready for long would then run alone.
constexpr Duration kMostOwed = 4 * JobQueue::kQuantum;

// A job is expected to miss its deadline only if it would be late by this much.
// The estimates are not exact, and jobs that cannot be helped must not keep
// others out.
constexpr double kHopeless = 1.25;

// Takes `key` out of `set`. `node` keeps its memory until Restore.
template <typename Set>
void Extract(Set& set, typename Set::key_type key,
             typename Set::node_type& node) {
  node = set.extract(key);
}

template <typename Set>
void Insert(Set& set, typename Set::key_type key,
            typename Set::node_type& node) {
  if (node.empty()) {
    set.insert(key);
  } else {
    set.insert(std::move(node));
  }
}

Duration WithSpare(Duration time) {
  return time + time / JobQueue::kSpare + JobQueue::kQuantum;
}

}  // namespace

struct JobQueue::Caller {
  uint64_t id = 0;
  Duration service{0};  // the worker time that the caller has had
  int64_t jobs = 0;
  Duration left{0};  // of all its jobs
  // The jobs that are ready.
  ByLeft ready;
  ByDeadline ready_dated;
  ByAge ready_undated;
  // All jobs.
  ByDeadline dated;
  ByAge undated;
  Duration owed{0};  // how far the oldest undated job is behind its share
  // When the first job will need more than half of the time until its deadline,
  // if its caller gets no turn until then, and when that was computed.
  SteadyTime tight_from = SteadyTime::max();
  SteadyTime tight_computed = SteadyTime::min();
  ByService::node_type node;  // the place in ready_callers_
};

bool JobQueue::LessLeft::operator()(const Entry* a, const Entry* b) const {
  // Subtracting what the caller has got since then from each would give the
  // same order.
  const Duration of_a = a->left_ + a->waits_from_ / kAgingShare;
  const Duration of_b = b->left_ + b->waits_from_ / kAgingShare;
  if (of_a != of_b) return of_a < of_b;
  return a->number_ < b->number_;
}

bool JobQueue::Nearer::operator()(const Entry* a, const Entry* b) const {
  if (a->order_.deadline != b->order_.deadline) {
    return a->order_.deadline < b->order_.deadline;
  }
  return a->number_ < b->number_;
}

bool JobQueue::Older::operator()(const Entry* a, const Entry* b) const {
  return a->number_ < b->number_;
}

bool JobQueue::LessServed::operator()(const Caller* a, const Caller* b) const {
  if (a->service != b->service) return a->service < b->service;
  return a->id < b->id;
}

JobQueue::JobQueue(int workers) : workers_(workers) {}
JobQueue::~JobQueue() = default;

JobQueue::Caller& JobQueue::Activate(uint64_t id) {
  const auto [found, is_new] = callers_.try_emplace(id);
  auto& place = found->second;
  if (is_new) {
    place = active_.emplace(active_.end());
    place->id = id;
  } else if (place->jobs == 0) {
    active_.splice(active_.end(), idle_, place);
  } else {
    return *place;
  }
  place->service = std::max(place->service, virtual_now_ - kMostBehind);
  return *place;
}

void JobQueue::Deactivate(Caller& caller) {
  idle_.splice(idle_.end(), active_, callers_.at(caller.id));
  if (idle_.size() <= kRemembered) return;
  callers_.erase(idle_.front().id);
  idle_.pop_front();
}

void JobQueue::Add(Entry& entry, Duration work_time) {
  Caller& caller = Activate(entry.order_.caller);
  entry.caller_ = &caller;
  entry.work_time_ = work_time;
  entry.left_ = work_time;
  entry.waits_from_ = caller.service;
  entry.number_ = next_number_++;
  ++size_;
  ++caller.jobs;
  caller.left += entry.left_;
  left_ += entry.left_;
  if (!entry.has_deadline()) {
    caller.undated.insert(&entry);
    return;
  }
  caller.dated.insert(&entry);
  caller.tight_computed = SteadyTime::min();
}

void JobQueue::Remove(Entry& entry) {
  SetReady(entry, false);
  Caller& caller = *std::exchange(entry.caller_, nullptr);
  --size_;
  caller.left -= entry.left_;
  left_ -= entry.left_;
  caller.dated.erase(&entry);
  caller.undated.erase(&entry);
  if (caller.undated.empty()) caller.owed = Duration(0);
  if (--caller.jobs == 0) Deactivate(caller);
}

void JobQueue::SetReady(Entry& entry, bool ready) {
  if (entry.ready_ == ready) return;
  entry.ready_ = ready;
  Caller& caller = *entry.caller_;
  if (ready) {
    if (caller.ready.empty()) Insert(ready_callers_, &caller, caller.node);
    Insert(caller.ready, &entry, entry.left_node_);
    if (entry.has_deadline()) {
      Insert(caller.ready_dated, &entry, entry.deadline_node_);
    } else {
      Insert(caller.ready_undated, &entry, entry.age_node_);
    }
    return;
  }
  Extract(caller.ready, &entry, entry.left_node_);
  if (entry.has_deadline()) {
    Extract(caller.ready_dated, &entry, entry.deadline_node_);
  } else {
    Extract(caller.ready_undated, &entry, entry.age_node_);
  }
  if (caller.ready.empty()) Extract(ready_callers_, &caller, caller.node);
}

void JobQueue::Charge(Caller& caller, Duration time) {
  const bool ready = !caller.ready.empty();
  if (ready) Extract(ready_callers_, &caller, caller.node);
  caller.service += time;
  if (ready) Insert(ready_callers_, &caller, caller.node);
}

bool JobQueue::IsTight(Caller& caller, SteadyTime now) const {
  if (caller.dated.empty()) return false;
  if (caller.tight_computed == SteadyTime::min() ||
      now - caller.tight_computed >= kRefresh) {
    caller.tight_computed = now;
    caller.tight_from = SteadyTime::max();
    Duration before{0};
    for (const Entry* entry : caller.dated) {
      before += entry->left_;
      const Duration needed = TimeFor(before, !caller.undated.empty(),
                                      left_ - caller.left, active_callers());
      caller.tight_from =
          std::min(caller.tight_from, entry->order_.deadline - 2 * needed);
    }
  }
  return now >= caller.tight_from;
}

JobQueue::Turn JobQueue::Choose(const Caller& caller, bool tight) {
  if (caller.owed >= kQuantum && !caller.ready_undated.empty()) {
    return {.entry = *caller.ready_undated.begin(), .aged = true};
  }
  if (tight && !caller.ready_dated.empty()) {
    return {.entry = *caller.ready_dated.begin()};
  }
  return {.entry = *caller.ready.begin()};
}

JobQueue::Turn JobQueue::Begin(SteadyTime now, Entry* avoid) {
  // For this decision, the job that is avoided counts as not ready.
  const bool hide = avoid != nullptr && avoid->ready_;
  if (hide) SetReady(*avoid, false);
  Turn turn;
  if (!ready_callers_.empty()) {
    Caller& caller = **ready_callers_.begin();
    turn = Choose(caller, IsTight(caller, now));
  }
  if (hide) SetReady(*avoid, true);
  if (turn.entry == nullptr) {
    if (!hide) return turn;
    turn.entry = avoid;
  }
  Caller& caller = *turn.entry->caller_;
  virtual_now_ = std::max(virtual_now_, caller.service);
  Charge(caller, kQuantum);
  if (turn.aged) caller.owed -= kQuantum;
  return turn;
}

void JobQueue::End(const Turn& turn, Duration used, Duration left) {
  Entry& entry = *turn.entry;
  Caller& caller = *entry.caller_;
  Charge(caller, used - kQuantum);
  if (turn.aged) caller.owed += kQuantum;
  if (!caller.undated.empty()) {
    // The oldest job pays back what it gets without being chosen for its age.
    caller.owed +=
        *caller.undated.begin() == &entry ? -used : used / kAgingShare;
    caller.owed = std::clamp(caller.owed, Duration(0), kMostOwed);
  }
  const bool ready = entry.ready_;
  SetReady(entry, false);
  caller.left += left - entry.left_;
  left_ += left - entry.left_;
  entry.left_ = left;
  entry.waits_from_ += used;
  SetReady(entry, ready);
}

bool JobQueue::Precedes(const Entry& arrived, const Entry& running,
                        SteadyTime now) {
  Caller& caller = *arrived.caller_;
  if (running.caller_ != &caller) {
    return caller.service < running.caller_->service;
  }
  if (IsTight(caller, now) &&
      (arrived.has_deadline() || running.has_deadline())) {
    return Nearer()(&arrived, &running);
  }
  return LessLeft()(&arrived, &running);
}

Duration JobQueue::TimeFor(Duration work, bool has_undated,
                           Duration work_of_others, int64_t callers) const {
  const Duration before = std::min(callers * work, work + work_of_others);
  const Duration time = before / workers_;
  return has_undated ? time * kAgingShare / (kAgingShare - 1) : time;
}

bool JobQueue::IsHopeless(const Entry& entry, SteadyTime now) const {
  if (!entry.has_deadline()) return false;
  // Dividing avoids an overflow.
  return entry.left_ / workers_ / kHopeless >
         std::chrono::duration<double, std::nano>(entry.order_.deadline - now);
}

DeadlineForecast JobQueue::Forecast(const JobOrder& order, Duration work_time,
                                    int64_t width, SteadyTime now) const {
  DeadlineForecast forecast;
  if (order.deadline == SteadyTime::max() || size_ == 0) return forecast;
  const auto found = callers_.find(order.caller);
  const Caller* const caller =
      found == callers_.end() ? nullptr : &*found->second;
  const bool active = caller != nullptr && caller->jobs > 0;
  const Duration others = active ? left_ - caller->left : left_;
  const int64_t callers = active_callers() + (active ? 0 : 1);
  const bool has_undated = active && !caller->undated.empty();
  // `done` is the part of the jobs until then that has been done.
  const auto time_for = [&](Duration work, Duration done) {
    return WithSpare(TimeFor(work, has_undated, others, callers)) +
           done / workers_ / kSpare;
  };
  const auto done_of = [](const Entry& entry) {
    return std::max(Duration(0), entry.work_time_ - entry.left_);
  };
  // Returns the work until the end of `entry`, which runs after `work`. Its
  // deadline ends it at the latest.
  const auto with_job = [&](Duration work, const Entry& entry) {
    work += entry.left_;
    const Duration time = TimeFor(work, has_undated, others, callers);
    const Duration left = std::max(Duration(0), entry.order_.deadline - now);
    if (time <= left) return work;
    return Duration(static_cast<int64_t>(static_cast<double>(work.count()) *
                                         (static_cast<double>(left.count()) /
                                          static_cast<double>(time.count()))));
  };
  // The jobs with nearer deadlines run before this one.
  Duration before{0};
  Duration done{0};
  ByDeadline::const_iterator next;
  if (active) {
    next = caller->dated.begin();
    while (next != caller->dated.end() &&
           (*next)->order_.deadline <= order.deadline) {
      done += done_of(**next);
      before = with_job(before, **next++);
    }
  }
  const Duration alone =
      WithSpare(work_time / std::min(workers_, std::max<int64_t>(width, 1)));
  forecast.needed = std::max(alone, time_for(before + work_time, done));
  forecast.left = order.deadline - now;
  if (forecast.needed > forecast.left) {
    forecast.in_time = false;
    if (alone <= forecast.left) {
      forecast.retry_after = forecast.needed - forecast.left;
    }
    return forecast;
  }
  if (!active) return forecast;
  // The others run after this one.
  Duration worst{0};
  for (; next != caller->dated.end(); ++next) {
    const Duration until_end = before + (*next)->left_;
    before = with_job(before, **next);
    done += done_of(**next);
    const Duration left = (*next)->order_.deadline - now;
    const Duration without = time_for(until_end, done);
    const Duration with = time_for(until_end + work_time, done);
    const auto hopeless = Duration(
        static_cast<int64_t>(kHopeless * static_cast<double>(left.count())));
    if (with <= left || without > hopeless || with - left <= worst) continue;
    worst = with - left;
    forecast.in_time = false;
    forecast.own_deadline = false;
    forecast.needed = with;
    forecast.left = left;
    forecast.retry_after = worst;
  }
  return forecast;
}

}  // namespace attnd
