#include "core/job_queue.h"

#include <algorithm>
#include <utility>

namespace attnd {
namespace {

using Duration = JobQueue::Duration;

// For so long, a client's jobs with deadlines are not looked at again.
constexpr Duration kRefresh = std::chrono::milliseconds(2);

// The most time that the aged jobs of a client can be behind their share.
// Without a limit, a job that was not ready for long would then run alone.
constexpr Duration kMostOwed = 4 * JobQueue::kQuantum;

// How many clients without jobs the queue remembers, at least.
constexpr size_t kRemembered = 1024;

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

struct JobQueue::Client {
  uint64_t id = 0;
  Duration service{0};  // the worker time that the client has had
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
  // if its client gets no turn until then, and when that was computed.
  SteadyTime tight_from = SteadyTime::max();
  SteadyTime tight_computed = SteadyTime::min();
  ByService::node_type node;  // the place in ready_clients_
};

bool JobQueue::LessLeft::operator()(const Entry* a, const Entry* b) const {
  // Subtracting what the client has got since then from each would give the
  // same order.
  const Duration of_a = a->left_ + a->came_at_ / kAgingShare;
  const Duration of_b = b->left_ + b->came_at_ / kAgingShare;
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

bool JobQueue::LessServed::operator()(const Client* a, const Client* b) const {
  if (a->service != b->service) return a->service < b->service;
  return a->id < b->id;
}

JobQueue::JobQueue(int workers) : workers_(workers) {}
JobQueue::~JobQueue() = default;

JobQueue::Client& JobQueue::Activate(uint64_t id) {
  const auto found = clients_.find(id);
  if (found != clients_.end() && found->second->jobs > 0) return *found->second;
  const auto active = static_cast<size_t>(active_clients_);
  if (clients_.size() >= kRemembered + 2 * active) {
    std::erase_if(clients_,
                  [](const auto& item) { return item.second->jobs == 0; });
  }
  std::unique_ptr<Client>& client = clients_[id];
  if (client == nullptr) client = std::make_unique<Client>();
  client->id = id;
  client->service = std::max(client->service, virtual_now_ - kMostBehind);
  ++active_clients_;
  return *client;
}

void JobQueue::Add(Entry& entry, Duration work_time) {
  Client& client = Activate(entry.order_.client);
  entry.client_ = &client;
  entry.work_time_ = work_time;
  entry.left_ = work_time;
  entry.came_at_ = client.service;
  entry.number_ = next_number_++;
  ++size_;
  ++client.jobs;
  client.left += entry.left_;
  left_ += entry.left_;
  if (!entry.has_deadline()) {
    client.undated.insert(&entry);
    return;
  }
  client.dated.insert(&entry);
  client.tight_computed = SteadyTime::min();
}

void JobQueue::Remove(Entry& entry) {
  SetReady(entry, false);
  Client& client = *std::exchange(entry.client_, nullptr);
  --size_;
  client.left -= entry.left_;
  left_ -= entry.left_;
  client.dated.erase(&entry);
  client.undated.erase(&entry);
  if (client.undated.empty()) client.owed = Duration(0);
  if (--client.jobs == 0) --active_clients_;
}

void JobQueue::SetReady(Entry& entry, bool ready) {
  if (entry.ready_ == ready) return;
  entry.ready_ = ready;
  Client& client = *entry.client_;
  if (ready) {
    if (client.ready.empty()) Insert(ready_clients_, &client, client.node);
    Insert(client.ready, &entry, entry.left_node_);
    if (entry.has_deadline()) {
      Insert(client.ready_dated, &entry, entry.deadline_node_);
    } else {
      Insert(client.ready_undated, &entry, entry.age_node_);
    }
    return;
  }
  Extract(client.ready, &entry, entry.left_node_);
  if (entry.has_deadline()) {
    Extract(client.ready_dated, &entry, entry.deadline_node_);
  } else {
    Extract(client.ready_undated, &entry, entry.age_node_);
  }
  if (client.ready.empty()) Extract(ready_clients_, &client, client.node);
}

void JobQueue::Charge(Client& client, Duration time) {
  const bool ready = !client.ready.empty();
  if (ready) Extract(ready_clients_, &client, client.node);
  client.service += time;
  if (ready) Insert(ready_clients_, &client, client.node);
}

bool JobQueue::IsTight(Client& client, SteadyTime now) const {
  if (client.dated.empty()) return false;
  if (client.tight_computed == SteadyTime::min() ||
      now - client.tight_computed >= kRefresh) {
    client.tight_computed = now;
    client.tight_from = SteadyTime::max();
    Duration before{0};
    for (const Entry* entry : client.dated) {
      before += entry->left_;
      const Duration needed = TimeFor(before, !client.undated.empty(),
                                      left_ - client.left, active_clients_);
      client.tight_from =
          std::min(client.tight_from, entry->order_.deadline - 2 * needed);
    }
  }
  return now >= client.tight_from;
}

JobQueue::Turn JobQueue::Choose(const Client& client, bool tight) {
  if (client.owed >= kQuantum && !client.ready_undated.empty()) {
    return {.entry = *client.ready_undated.begin(), .aged = true};
  }
  if (tight && !client.ready_dated.empty()) {
    return {.entry = *client.ready_dated.begin()};
  }
  return {.entry = *client.ready.begin()};
}

JobQueue::Turn JobQueue::Begin(SteadyTime now, Entry* avoid) {
  // For this decision, the job that is avoided counts as not ready.
  const bool hide = avoid != nullptr && avoid->ready_;
  if (hide) SetReady(*avoid, false);
  Turn turn;
  if (!ready_clients_.empty()) {
    Client& client = **ready_clients_.begin();
    turn = Choose(client, IsTight(client, now));
  }
  if (hide) SetReady(*avoid, true);
  if (turn.entry == nullptr) {
    if (!hide) return turn;
    turn.entry = avoid;
  }
  Client& client = *turn.entry->client_;
  virtual_now_ = std::max(virtual_now_, client.service);
  Charge(client, kQuantum);
  if (turn.aged) client.owed -= kQuantum;
  return turn;
}

void JobQueue::End(const Turn& turn, Duration used, Duration left) {
  Entry& entry = *turn.entry;
  Client& client = *entry.client_;
  Charge(client, used - kQuantum);
  if (turn.aged) client.owed += kQuantum;
  if (!client.undated.empty()) {
    // The oldest job pays back what it gets without being chosen for its age.
    client.owed +=
        *client.undated.begin() == &entry ? -used : used / kAgingShare;
    client.owed = std::clamp(client.owed, Duration(0), kMostOwed);
  }
  const bool ready = entry.ready_;
  SetReady(entry, false);
  client.left += left - entry.left_;
  left_ += left - entry.left_;
  entry.left_ = left;
  SetReady(entry, ready);
}

bool JobQueue::Precedes(const Entry& arrived, const Entry& running,
                        SteadyTime now) {
  Client& client = *arrived.client_;
  if (running.client_ != &client) {
    return client.service < running.client_->service;
  }
  if (IsTight(client, now) &&
      (arrived.has_deadline() || running.has_deadline())) {
    return Nearer()(&arrived, &running);
  }
  return LessLeft()(&arrived, &running);
}

Duration JobQueue::TimeFor(Duration work, bool has_undated,
                           Duration work_of_others, int64_t clients) const {
  const Duration before = std::min(clients * work, work + work_of_others);
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
  const auto found = clients_.find(order.client);
  const Client* const client =
      found == clients_.end() ? nullptr : found->second.get();
  const bool active = client != nullptr && client->jobs > 0;
  const Duration others = active ? left_ - client->left : left_;
  const int64_t clients = active_clients_ + (active ? 0 : 1);
  const bool has_undated = active && !client->undated.empty();
  // `done` is the part of the jobs until then that has been done.
  const auto time_for = [&](Duration work, Duration done) {
    return WithSpare(TimeFor(work, has_undated, others, clients)) +
           done / workers_ / kSpare;
  };
  const auto done_of = [](const Entry& entry) {
    return std::max(Duration(0), entry.work_time_ - entry.left_);
  };
  // Returns the work until the end of `entry`, which runs after `work`. Its
  // deadline ends it at the latest.
  const auto with_job = [&](Duration work, const Entry& entry) {
    work += entry.left_;
    const Duration time = TimeFor(work, has_undated, others, clients);
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
    next = client->dated.begin();
    while (next != client->dated.end() &&
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
  for (; next != client->dated.end(); ++next) {
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
