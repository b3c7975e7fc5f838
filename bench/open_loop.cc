#include "bench/open_loop.h"

#include <sys/prctl.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>

namespace attnd::bench {
namespace {

using Clock = std::chrono::steady_clock;

// This is larger than --max-in-flight of a server, so the server refuses calls
// before the slots run out.
constexpr int kSlots = 320;

double Microseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

// The callbacks write to this, and the sender waits for it.
class Tally {
 public:
  Tally() {
    for (int i = 0; i < kSlots; ++i) free_slots_.push_back(i);
  }

  int TakeSlot() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !free_slots_.empty(); });
    const int slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }

  void Answered(int slot, Clock::time_point due, const absl::Status& status) {
    const Clock::time_point now = Clock::now();
    const std::lock_guard lock(mutex_);
    free_slots_.push_back(slot);
    if (status.ok()) {
      result_.latencies_us.push_back(Microseconds(now - due));
    } else if (absl::IsResourceExhausted(status)) {
      ++result_.refused;
    } else if (failure_.ok()) {
      failure_ = status;
    }
    changed_.notify_all();
  }

  // Waits for all calls.
  OpenLoopResult Finish() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return free_slots_.size() == kSlots; });
    if (!failure_.ok()) {
      throw std::runtime_error("open loop: " + std::string(failure_.message()));
    }
    return std::move(result_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int> free_slots_;
  OpenLoopResult result_;
  absl::Status failure_;
};

}  // namespace

OpenLoopResult RunOpenLoop(const ServingCase& shape,
                           const std::vector<client::AttentionClient>& clients,
                           double rate, double seconds) {
  // With this, sleeps end within a microsecond of their time, instead of within
  // 50.
  prctl(PR_SET_TIMERSLACK, 1000UL);
  Workload workload(shape, kSlots);
  for (const auto& client : clients) workload.Call(client, 0);
  std::mt19937_64 rng(1);
  std::exponential_distribution<double> gap(rate);
  std::vector<double> delays_us;
  Tally tally;
  const Clock::time_point begin = Clock::now();
  size_t next = 0;
  double at = gap(rng);
  while (at < seconds) {
    const Clock::time_point due =
        begin + std::chrono::duration_cast<Clock::duration>(
                    std::chrono::duration<double>(at));
    at += gap(rng);
    std::this_thread::sleep_until(due);
    const int slot = tally.TakeSlot();
    delays_us.push_back(Microseconds(Clock::now() - due));
    workload.CallAsync(clients[next++ % clients.size()], slot,
                       [&tally, slot, due](const auto& reply) {
                         tally.Answered(slot, due, reply.status());
                       });
  }
  OpenLoopResult result = tally.Finish();
  const double took =
      std::chrono::duration<double>(Clock::now() - begin).count();
  result.send_delays_us = std::move(delays_us);
  result.answered_per_second =
      static_cast<double>(result.latencies_us.size()) / took;
  return result;
}

}  // namespace attnd::bench
