// Plays a list of calls to a running server, each at its time and with its
// deadline, checks every answer, and prints what became of each call. It can
// also keep a number of calls in flight, or measure how soon a server is idle
// after a cancelled call. bench/goodput.py runs this program.
#include <sys/prctl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <iostream>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "bench/records.h"
#include "bench/serving_case.h"
#include "client/attention_client.h"
#include "client/error_details.h"
#include "client/shared_region.h"

namespace attnd::bench {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr int64_t kHeads = 4;
constexpr int64_t kHeadDim = 64;

// How many calls may be in flight.
constexpr size_t kSlots = 1024;

// The server may still write the output of a failed call for a moment, so its
// slot rests.
constexpr std::chrono::seconds kRest{1};

struct Flags {
  std::string server;
  std::string shm_socket;
  int connections = 1;
  int keep = 0;
  int cancel_rounds = 0;
  int64_t q_len = 256;
  int64_t kv_len = 8192;
  double seconds = 5;
};

struct PlannedCall {
  int64_t at_us = 0;
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t deadline_us = 0;
};

int64_t SinceUs(Clock::time_point begin) {
  return std::chrono::duration_cast<microseconds>(Clock::now() - begin).count();
}

// The tensors of all calls, in one region. Calls of one size have the same
// inputs, so that each answer can be compared with the first one of its size.
class Tensors {
 public:
  Tensors(const std::string& shm_socket, int64_t max_q_len, int64_t max_kv_len)
      : region_(Region(shm_socket, max_q_len, max_kv_len)),
        query_(Allocate(kHeads * max_q_len * kHeadDim)),
        key_(Allocate(max_kv_len * kHeadDim)),
        value_(Allocate(max_kv_len * kHeadDim)) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (client::Elements* const tensor : {&query_, &key_, &value_}) {
      for (float& element : tensor->floats()) element = normal(rng);
    }
    for (size_t i = 0; i < kSlots; ++i) {
      outputs_.push_back(Allocate(kHeads * max_q_len * kHeadDim));
    }
  }

  client::AttentionInputs Inputs(int64_t q_len, int64_t kv_len) {
    const std::vector<int64_t> kv_shape = {1, 1, kv_len, kHeadDim};
    return {.query = {First(query_, kHeads * q_len * kHeadDim),
                      {1, kHeads, q_len, kHeadDim}},
            .key = {First(key_, kv_len * kHeadDim), kv_shape},
            .value = {First(value_, kv_len * kHeadDim), kv_shape}};
  }
  client::Elements Output(size_t slot, int64_t q_len) {
    return First(outputs_[slot], kHeads * q_len * kHeadDim);
  }

  // Remembers the answer in `slot` as the right one for its size.
  void Expect(size_t slot, int64_t q_len, int64_t kv_len) {
    const auto floats = Output(slot, q_len).floats();
    expected_[{q_len, kv_len}].assign(floats.begin(), floats.end());
  }
  bool IsRight(size_t slot, int64_t q_len, int64_t kv_len) {
    const auto floats = Output(slot, q_len).floats();
    const std::vector<float>& right = expected_.at({q_len, kv_len});
    return std::memcmp(floats.data(), right.data(), floats.size_bytes()) == 0;
  }

 private:
  static client::SharedRegion Region(const std::string& shm_socket,
                                     int64_t max_q_len, int64_t max_kv_len) {
    const int64_t elements =
        static_cast<int64_t>(kSlots + 1) * kHeads * max_q_len * kHeadDim +
        2 * max_kv_len * kHeadDim;
    constexpr int64_t kPadding = 64;
    auto region = client::RegisterRegion(
        shm_socket, elements * static_cast<int64_t>(sizeof(float)) +
                        static_cast<int64_t>(kSlots + 3) * kPadding);
    if (!region.ok()) throw std::runtime_error(region.status().ToString());
    return *std::move(region);
  }
  client::Elements Allocate(int64_t count) {
    return region_.Allocate(client::DataType::kF32, count).value();
  }
  // Keeps the place in the region. Elements that are made from floats() alone
  // would be sent over the connection, which takes longer than many calls.
  static client::Elements First(const client::Elements& elements,
                                int64_t count) {
    const auto bytes = static_cast<size_t>(count) * sizeof(float);
    return {elements.type(), elements.bytes().first(bytes),
            elements.place().value()};
  }

  client::SharedRegion region_;
  client::Elements query_, key_, value_;
  std::vector<client::Elements> outputs_;
  std::map<std::pair<int64_t, int64_t>, std::vector<float>> expected_;
};

// Makes calls, and prints a line of JSON for each that has ended: its number,
// when it was sent and when it ended, in microseconds since the start, its
// status, the reason of a refusal, the time that the server computed, and
// whether the answer is right.
class Player {
 public:
  Player(const Flags& flags, int64_t max_q_len, int64_t max_kv_len)
      : tensors_(flags.shm_socket, max_q_len, max_kv_len),
        clients_(Connect(flags.server, flags.connections)) {
    for (size_t i = 0; i < kSlots; ++i) free_.push_back({i, {}});
  }

  // Computes the right answer for a size. Call this before calls of the size.
  void Learn(int64_t q_len, int64_t kv_len) {
    for (const client::AttentionClient& client : clients_) {
      const auto reply =
          client.Attention(tensors_.Inputs(q_len, kv_len),
                           {.output = tensors_.Output(0, q_len)});
      if (!reply.ok()) throw std::runtime_error(reply.status().ToString());
    }
    tensors_.Expect(0, q_len, kv_len);
  }

  void Begin() { begin_ = Clock::now(); }
  Clock::time_point begin() const { return begin_; }

  // Sends a call, with `deadline_us` from now.
  void Send(int64_t number, const PlannedCall& call) {
    const size_t slot = TakeSlot();
    const int64_t sent_us = SinceUs(begin_);
    const size_t client = static_cast<size_t>(number) % clients_.size();
    clients_[client]
        .WithDeadline(absl::Microseconds(call.deadline_us))
        .AttentionAsync(
            tensors_.Inputs(call.q_len, call.kv_len),
            {.output = tensors_.Output(slot, call.q_len)}, {},
            [this, slot, number, call, sent_us](const auto& reply) {
              const int64_t ended_us = SinceUs(begin_);
              Json line = {
                  {"call", number},
                  {"sent_us", sent_us},
                  {"ended_us", ended_us},
                  {"status", absl::StatusCodeToString(reply.status().code())}};
              if (reply.ok()) {
                line["compute_us"] =
                    absl::ToInt64Microseconds(reply->stats.compute_time);
                line["right"] = tensors_.IsRight(slot, call.q_len, call.kv_len);
              } else {
                line["reason"] = client::DetailsOf(reply.status()).reason;
              }
              Ended(slot, reply.ok(), line.dump());
            });
  }

  // Waits until fewer than `limit` calls are in flight, or until Stop. Returns
  // whether a call has failed since this was last called.
  bool WaitBelow(size_t limit) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || in_flight_ < limit; });
    return std::exchange(failed_, false);
  }

  // Makes WaitBelow return at once from now on. Thread-safe.
  void Stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  bool stopped() {
    const std::lock_guard lock(mutex_);
    return stopped_;
  }

  // Prints the calls that have ended.
  void Print() {
    const std::lock_guard lock(mutex_);
    for (const std::string& line : lines_) std::cout << line << "\n";
  }

 private:
  struct Free {
    size_t slot;
    Clock::time_point from;  // when it can be used again
  };

  size_t TakeSlot() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !free_.empty(); });
    const Free free = free_.front();
    free_.pop_front();
    ++in_flight_;
    lock.unlock();
    std::this_thread::sleep_until(free.from);
    return free.slot;
  }
  void Ended(size_t slot, bool ok, std::string line) {
    const std::lock_guard lock(mutex_);
    lines_.push_back(std::move(line));
    --in_flight_;
    failed_ = failed_ || !ok;
    if (ok) {
      free_.push_front({slot, {}});
    } else {
      free_.push_back({slot, Clock::now() + kRest});
    }
    changed_.notify_all();
  }

  Tensors tensors_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Free> free_;
  size_t in_flight_ = 0;
  bool failed_ = false;
  bool stopped_ = false;
  std::vector<std::string> lines_;
  Clock::time_point begin_;
  std::vector<client::AttentionClient> clients_;
};

void PlaySchedule(const Flags& flags) {
  std::vector<PlannedCall> calls;
  PlannedCall read;
  int64_t max_q_len = 0;
  int64_t max_kv_len = 0;
  while (std::cin >> read.at_us >> read.q_len >> read.kv_len >>
         read.deadline_us) {
    calls.push_back(read);
    max_q_len = std::max(max_q_len, read.q_len);
    max_kv_len = std::max(max_kv_len, read.kv_len);
  }
  if (calls.empty()) throw std::runtime_error("the list of calls is empty");
  Player player(flags, max_q_len, max_kv_len);
  std::map<std::pair<int64_t, int64_t>, bool> learned;
  for (const PlannedCall& call : calls) {
    if (!std::exchange(learned[{call.q_len, call.kv_len}], true)) {
      player.Learn(call.q_len, call.kv_len);
    }
  }
  player.Begin();
  for (size_t i = 0; i < calls.size(); ++i) {
    PlannedCall call = calls[i];
    std::this_thread::sleep_until(player.begin() + microseconds(call.at_us));
    // A call that is sent late has less time.
    const int64_t late_us = SinceUs(player.begin()) - call.at_us;
    call.deadline_us = std::max<int64_t>(1, call.deadline_us - late_us);
    player.Send(static_cast<int64_t>(i), call);
  }
  player.WaitBelow(1);
  player.Print();
}

// Keeps calls in flight for flags.seconds. If these are 0, prints a line when
// the server has as many calls as that, goes on until standard input ends, and
// abandons the calls that then run.
void KeepInFlight(const Flags& flags) {
  Player player(flags, flags.q_len, flags.kv_len);
  player.Learn(flags.q_len, flags.kv_len);
  player.Begin();
  const bool timed = flags.seconds > 0;
  const Clock::time_point end =
      player.begin() + std::chrono::duration_cast<Clock::duration>(
                           std::chrono::duration<double>(flags.seconds));
  std::thread watcher([&] {
    if (timed) return;
    const client::AttentionClient client = Connect(flags.server, 1).front();
    int64_t in_flight = 0;
    while (in_flight < flags.keep) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      const auto info = client.GetServerInfo();
      if (info.ok()) in_flight = info->load.in_flight;
    }
    std::cout << Json({{"in_flight", in_flight}}).dump() << '\n' << std::flush;
    std::cin.ignore(std::numeric_limits<std::streamsize>::max());
    player.Stop();
  });
  const PlannedCall call{
      .q_len = flags.q_len, .kv_len = flags.kv_len, .deadline_us = 600'000'000};
  for (int64_t number = 0; timed ? Clock::now() < end : !player.stopped();
       ++number) {
    player.Send(number, call);
    if (player.WaitBelow(static_cast<size_t>(flags.keep))) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  watcher.join();
  if (timed) player.WaitBelow(1);
  player.Print();
  std::cout << std::flush;
  if (!timed) std::_Exit(0);
}

// Cancels calls while they compute, and prints for each how long the server's
// workers were still busy.
void MeasureCancels(const Flags& flags) {
  Tensors tensors(flags.shm_socket, flags.q_len, flags.kv_len);
  const client::AttentionClient client = Connect(flags.server, 1).front();
  const auto busy_threads = [&] {
    const auto info = client.GetServerInfo();
    if (!info.ok()) throw std::runtime_error(info.status().ToString());
    return info->load.busy_threads;
  };
  std::mt19937 rng(1);
  for (int round = 0; round < flags.cancel_rounds; ++round) {
    std::mutex mutex;
    std::condition_variable changed;
    bool over = false;
    absl::StatusCode code = absl::StatusCode::kOk;
    const client::PendingCall call = client.AttentionAsync(
        tensors.Inputs(flags.q_len, flags.kv_len),
        {.output = tensors.Output(0, flags.q_len)}, {}, [&](const auto& reply) {
          const std::lock_guard lock(mutex);
          code = reply.status().code();
          over = true;
          changed.notify_one();
        });
    while (busy_threads() == 0) {
      const std::lock_guard lock(mutex);
      if (over) throw std::runtime_error("the call ended before its cancel");
    }
    std::this_thread::sleep_for(microseconds(rng() % 10'000));
    const Clock::time_point cancelled = Clock::now();
    call.Cancel();
    while (busy_threads() > 0) {
    }
    const int64_t idle_us = SinceUs(cancelled);
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return over; });
    if (code != absl::StatusCode::kCancelled) {
      throw std::runtime_error("the call ended before its cancel");
    }
    std::cout << Json({{"idle_us", idle_us}}).dump() << "\n";
  }
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Makes calls to a server and prints what became of each. Reads the list "
      "of calls from standard input, one a line: AT_US Q_LEN KV_LEN "
      "DEADLINE_US.");
  app.add_option("--server", flags.server, "The address of the server")
      ->required();
  app.add_option("--shm-socket", flags.shm_socket,
                 "The server's socket for shared memory")
      ->required();
  app.add_option("--connections", flags.connections,
                 "Over how many connections")
      ->capture_default_str();
  app.add_option("--keep", flags.keep,
                 "Instead of the list, keep this many calls in flight");
  app.add_option("--cancel-rounds", flags.cancel_rounds,
                 "Instead of the list, cancel this many calls");
  app.add_option("--q-len", flags.q_len, "The size of these calls")
      ->capture_default_str();
  app.add_option("--kv-len", flags.kv_len, "The size of these calls")
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds,
                 "For how many seconds to --keep them; 0 = until standard "
                 "input ends")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  prctl(PR_SET_TIMERSLACK, 1000UL);  // sleeps end within a microsecond
  if (flags.cancel_rounds > 0) {
    MeasureCancels(flags);
  } else if (flags.keep > 0) {
    KeepInFlight(flags);
  } else {
    PlaySchedule(flags);
  }
  return 0;
}

}  // namespace
}  // namespace attnd::bench

int main(int argc, char** argv) {
  try {
    return attnd::bench::Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "call_player: " << error.what() << "\n";
    return 1;
  }
}
