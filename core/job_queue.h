// Decides which job a worker serves next, and whether one more job could end
// before its deadline. Knows neither threads nor clocks: its users pass the
// time, so that tests can choose it.
#ifndef ATTND_CORE_JOB_QUEUE_H_
#define ATTND_CORE_JOB_QUEUE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <set>
#include <unordered_map>

#include "core/work_rate.h"

namespace attnd {

using SteadyTime = std::chrono::steady_clock::time_point;

// What decides when the tasks of a job run, relative to those of other jobs.
struct JobOrder {
  // Jobs with the same number belong to the same caller.
  uint64_t caller = 0;
  // When the result is of no more use.
  SteadyTime deadline = SteadyTime::max();
  Work work = {};
};

// Whether a job could end before its deadline.
struct DeadlineForecast {
  // Whether it would, and whether all jobs in the queue still would, too.
  bool in_time = true;
  // How long the job would take from now on.
  std::chrono::nanoseconds needed{0};
  // How long from now there is until the deadline that would be missed: that of
  // the job, or that of a job in the queue.
  std::chrono::nanoseconds left{0};
  bool own_deadline = true;  // whose deadline `left` is about
  // After this time, the job could be accepted with a deadline that is as far
  // away then as its own is now. Nullopt if it would take too long even alone.
  std::optional<std::chrono::nanoseconds> retry_after;
};

// The jobs of a scheduler, in the order in which workers serve them. docs/adr/
// 0013 has the reasons for this order:
//
// - Callers that have work share the workers equally, by time. A caller that
//   has had less than its share catches up, by kMostBehind at most.
// - Of one caller's jobs, the one with the least work left is next. While a job
//   waits, it counts as smaller by an eighth of what the caller's other jobs
//   get, so that jobs of about the same size run in the order in which they
//   came. But if a job needs more than half of the time until its deadline,
//   then jobs with deadlines come first, the nearest deadline before the
//   others.
// - Of each caller's time, the oldest job without a deadline gets an eighth.
//
// A decision takes O(log n) for n jobs. Adding a deadline takes O(n) at most
// once in kRefresh. Not thread-safe.
class JobQueue {
 public:
  using Duration = std::chrono::nanoseconds;

  // How long a job keeps a worker while others wait. This is long compared to
  // the cost of a switch, and short compared to a user's patience.
  static constexpr Duration kQuantum = std::chrono::microseconds(500);
  // An accepted job has 1 / kSpare of the time that it needs to spare, and one
  // quantum, because estimates are not exact, and workers are not always busy.
  // While it runs, this spare time does not shrink: if the estimate of a whole
  // job is wrong by a tenth, so is the end of its last part.
  static constexpr int64_t kSpare = 10;
  // The part of a caller's time that jobs with deadlines leave to those without
  // is 1 / kAgingShare.
  static constexpr int64_t kAgingShare = 8;
  // How much worker time a caller may be behind the others when its first job
  // arrives. So the calls of a caller that calls rarely, and takes less than
  // this, wait for nobody.
  static constexpr Duration kMostBehind = std::chrono::milliseconds(25);
  // How many callers without jobs the queue remembers.
  static constexpr size_t kRemembered = 1024;

  class Entry;

 private:
  struct Caller;
  struct LessLeft {
    bool operator()(const Entry* a, const Entry* b) const;
  };
  struct Nearer {
    bool operator()(const Entry* a, const Entry* b) const;
  };
  struct Older {
    bool operator()(const Entry* a, const Entry* b) const;
  };
  using ByLeft = std::set<Entry*, LessLeft>;
  using ByDeadline = std::set<Entry*, Nearer>;
  using ByAge = std::set<Entry*, Older>;
  struct LessServed {
    bool operator()(const Caller* a, const Caller* b) const;
  };
  using ByService = std::set<Caller*, LessServed>;

 public:
  // One job. Its owner keeps it in memory while it is in the queue.
  class Entry {
   public:
    explicit Entry(const JobOrder& order) : order_(order) {}
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

    const JobOrder& order() const { return order_; }
    // The worker time that the job still takes.
    Duration left() const { return left_; }

   private:
    friend class JobQueue;
    bool has_deadline() const { return order_.deadline != SteadyTime::max(); }

    const JobOrder order_;
    Duration work_time_{0};  // of the whole job, as expected
    Duration left_{0};
    // What the caller had got when the job came, and what the job has got since
    // then. All else that the caller gets, the job waits for.
    Duration waits_from_{0};
    Caller* caller_ = nullptr;
    int64_t number_ = 0;  // jobs are numbered in the order in which they came
    bool ready_ = false;
    // The places in the caller's sets while the job is not ready, so that no
    // decision allocates memory.
    ByLeft::node_type left_node_;
    ByDeadline::node_type deadline_node_;
    ByAge::node_type age_node_;
  };

  explicit JobQueue(int workers);
  ~JobQueue();
  JobQueue(const JobQueue&) = delete;
  JobQueue& operator=(const JobQueue&) = delete;

  // Adds a job that is not ready, and for which one worker would take
  // `work_time`. Removes it again.
  void Add(Entry& entry, Duration work_time);
  void Remove(Entry& entry);
  // Says whether the job has a task that a worker could run now.
  void SetReady(Entry& entry, bool ready);

  // A worker's turn with a job.
  struct Turn {
    Entry* entry = nullptr;  // null: no job is ready
    bool aged = false;       // whether the job was chosen for its age
  };
  // Returns the turn that a free worker should take at `now`, and charges the
  // caller for one quantum. `avoid` is chosen only if no other job is ready.
  Turn Begin(SteadyTime now, Entry* avoid = nullptr);
  // Ends a turn of a job that is still in the queue: it took `used`, and the
  // job needs `left` more.
  void End(const Turn& turn, Duration used, Duration left);

  // Returns whether a worker that serves `running` should rather serve
  // `arrived`.
  bool Precedes(const Entry& arrived, const Entry& running, SteadyTime now);

  // Returns whether a job of this order, which is not in the queue, could end
  // before its deadline. It can use `width` workers at a time. If nothing else
  // is in the queue, the answer is yes: a job that is too slow is then stopped
  // by its deadline, and an estimate that is too high corrects itself.
  DeadlineForecast Forecast(const JobOrder& order, Duration work_time,
                            int64_t width, SteadyTime now) const;

  // Returns whether the job will miss its deadline even if it runs alone.
  bool IsHopeless(const Entry& entry, SteadyTime now) const;

  int64_t size() const { return size_; }
  // How many callers the queue knows: those that have jobs, and kRemembered
  // others at most.
  size_t callers() const { return callers_.size(); }

 private:
  // Returns the caller, which is about to get a job.
  Caller& Activate(uint64_t id);
  // Remembers a caller whose last job was removed, and forgets the one that has
  // been without a job for the longest time if there are too many.
  void Deactivate(Caller& caller);
  int64_t active_callers() const {
    return static_cast<int64_t>(active_.size());
  }
  void Charge(Caller& caller, Duration time);
  // Returns the caller's next job, which must have one that is ready.
  static Turn Choose(const Caller& caller, bool tight);
  // Returns whether a job of the caller needs more than half of the time until
  // its deadline.
  bool IsTight(Caller& caller, SteadyTime now) const;
  // Returns how long it takes to do `work` of a caller while all callers that
  // have work get their shares.
  Duration TimeFor(Duration work, bool has_undated, Duration work_of_others,
                   int64_t callers) const;

  const int64_t workers_;
  int64_t size_ = 0;
  int64_t next_number_ = 0;
  Duration left_{0};  // of all jobs
  // The most service that a caller had which got a turn. A caller whose first
  // job arrives has had at least kMostBehind less.
  Duration virtual_now_{0};
  std::list<Caller> active_;  // those that have jobs
  // Those that have none, in the order of their last jobs. They keep their
  // service, so that they do not get more by ending all their jobs for a
  // moment.
  std::list<Caller> idle_;
  std::unordered_map<uint64_t, std::list<Caller>::iterator> callers_;
  ByService ready_callers_;  // those that have a job that is ready
};

}  // namespace attnd

#endif  // ATTND_CORE_JOB_QUEUE_H_
