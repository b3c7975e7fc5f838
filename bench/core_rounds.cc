#include "bench/core_rounds.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "base/checked_math.h"
#include "bench/amx_rate.h"
#include "bench/stream_bandwidth.h"
#include "core/fma_peak.h"

namespace attnd::bench {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// A turn counts if its limit changed by less than this share during the turn,
// and if AMX ran at least at this share of the best speed in this run. Beside a
// busy neighbour, AMX slows down to a third. Its clock changes its speed by a
// tenth.
constexpr double kDrift = 0.1;
constexpr double kAmxPace = 0.75;
// AMX must also do this many times the peak of the multiply-adds. Tiles could
// do 16 times as much. This is for a run that begins while AMX is slow and has
// seen no better speed yet.
constexpr double kAmxOverFma = 7;
// This is the ratio between the seconds of waiting and of turns that do not
// count, and the requested seconds.
constexpr int kPatience = 20;
constexpr size_t kMaxRounds = 101;

double SecondsOf(const RunStats& stats) {
  return duration<double>(stats.compute_time).count();
}

double SecondsSince(Clock::time_point start) {
  return duration<double>(Clock::now() - start).count();
}

// Returns the cycles per second. An addition that waits for the one before
// takes one cycle.
double MeasureClock() {
  constexpr int64_t kSteps = 10'000'000;
  uint64_t sum = 1;
  uint64_t addend = 3;
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < kSteps; i += 10) {
#pragma GCC unroll 10
    for (int j = 0; j < 10; ++j) {
      sum += addend;
      asm volatile("" : "+r"(sum), "+r"(addend));  // NOLINT(hicpp-no-assembler)
    }
  }
  return static_cast<double>(kSteps) / SecondsSince(start);
}

// A case that mostly reads takes turns on copies of its tensors that have this
// many bytes together, so that it reads from memory however few keys it has. In
// a model, too, other layers displace a layer's keys from the caches.
constexpr int64_t kBytesInMemory = int64_t{256} << 20;

std::vector<Tensors> TensorsOf(const Case& c, const AttentionProblem& problem) {
  const int64_t bytes = problem.key_bytes() + problem.value_bytes();
  const int64_t copies = c.ReadsMost() ? CeilDiv(kBytesInMemory, bytes) : 1;
  std::vector<Tensors> tensors;
  tensors.reserve(static_cast<size_t>(copies));
  for (int64_t i = 0; i < copies; ++i) tensors.emplace_back(c, problem);
  return tensors;
}

// A case of a group, and what it needs to be timed.
struct TimedCase {
  TimedCase(const Case& of, AttentionEngine& by)
      : c(of),
        engine(by),
        problem(ProblemOf(of)),
        tensors(TensorsOf(of, problem)),
        estimate(of.pass == Case::Pass::kBackward
                     ? by.estimator().EstimateBackward(problem)
                     : by.estimator().Estimate(problem)) {
    if (c.pass == Case::Pass::kBackward) {
      engine.Run(problem, tensors.front().forward()).value();
    }
    first = RunOnce(c, engine, problem, tensors.front());
    // A burst takes long compared with the resolution of the clock and with the
    // time that a worker needs to wake up.
    burst = std::clamp(static_cast<int>(0.02 / SecondsOf(first)), 1, 64);
  }

  // Returns the seconds of one call.
  double Burst() {
    double sum = 0;
    for (int i = 0; i < burst; ++i) {
      next = (next + 1) % tensors.size();
      sum += SecondsOf(RunOnce(c, engine, problem, tensors[next]));
    }
    return sum / burst;
  }

  double flops() const { return static_cast<double>(estimate.flops); }
  double bytes() const {
    return static_cast<double>(estimate.input_bytes + estimate.output_bytes);
  }
  // Returns whether the products are of bf16. The peak of the multiply-adds
  // does not limit these.
  bool of_bf16() const { return IsaName(first.isa).ends_with("_bf16"); }
  // Returns whether one bf16 product makes each product of two numbers.
  bool native_dot() const {
    return of_bf16() && first.kernel.find("bf16x3") == std::string_view::npos;
  }
  bool of_amx() const { return first.isa == Isa::kAmxBf16 && !c.ReadsMost(); }

  const Case c;
  AttentionEngine& engine;
  const AttentionProblem problem;
  const std::vector<Tensors> tensors;
  size_t next = 0;
  const MemoryEstimate estimate;
  RunStats first;
  int burst = 1;
  double other_limit =
      0;  // measured once: the limit that does not apply to this case
};

// A burst of a case, between two measurements of its limit.
struct Turn {
  double seconds = 0;  // of one call
  double bound =
      0;  // the mean of both measurements, in operations or bytes per second
  bool kept_pace = false;
};

// The results of one case, with one element per round.
struct Shares {
  std::vector<double> seconds, peaks, streams, peak_ratios, stream_ratios;
};

using TimedCases = std::vector<std::unique_ptr<TimedCase>>;
using Round = std::vector<Turn>;  // a turn for each case

Shares SharesOf(const TimedCase& it, size_t index,
                const std::vector<Round>& rounds) {
  Shares shares;
  for (const Round& round : rounds) {
    const Turn& turn = round[index];
    const bool reads = it.c.ReadsMost();
    const double peak = reads ? it.other_limit : turn.bound;
    const double stream = reads ? turn.bound : it.other_limit;
    shares.seconds.push_back(turn.seconds);
    shares.peaks.push_back(peak);
    shares.streams.push_back(stream);
    shares.peak_ratios.push_back(it.flops() / turn.seconds / peak);
    shares.stream_ratios.push_back(it.bytes() / turn.seconds / stream);
  }
  return shares;
}

Json RecordFor(const TimedCase& it, const Shares& shares) {
  const double time = Median(shares.seconds);
  const int64_t held = it.c.pass == Case::Pass::kNaive
                           ? it.estimate.naive_bytes
                           : it.estimate.flash_bytes;
  Json record = RecordOf(it.c);
  record.update({{"isa", IsaName(it.first.isa)},
                 {"kernel", it.first.kernel},
                 {"of_bf16", it.of_bf16()},
                 {"native_dot", it.native_dot()},
                 {"reads_most", it.c.ReadsMost()},
                 {"gflops", it.flops() / time / 1e9},
                 {"peak_gflops", Median(shares.peaks) / 1e9},
                 {"peak_ratio", Median(shares.peak_ratios)},
                 {"gbytes_per_s", it.bytes() / time / 1e9},
                 {"stream_gbytes_per_s", Median(shares.streams) / 1e9},
                 {"stream_ratio", Median(shares.stream_ratios)},
                 {"time_ms", time * 1e3},
                 {"held_bytes", held},
                 {"samples", shares.seconds.size()}});
  return record;
}

// `relative` is the speed divided by the speed of the group's first case. It
// compares operations per second. If the numbers of threads differ, it compares
// shares of peak.
void Compare(const TimedCase& first, const Shares& first_shares,
             const TimedCase& other, const Shares& shares, Json& first_record,
             Json& record) {
  const bool by_share = first.c.threads != other.c.threads;
  std::vector<double> relative, inverse;
  for (size_t i = 0; i < shares.seconds.size(); ++i) {
    relative.push_back(by_share
                           ? shares.peak_ratios[i] / first_shares.peak_ratios[i]
                           : other.flops() / shares.seconds[i] /
                                 (first.flops() / first_shares.seconds[i]));
    inverse.push_back(1 / relative.back());
  }
  record["relative"] = Median(relative);
  if (first.c.name == "masked") record["cost"] = Median(inverse);
  if (other.c.pass == Case::Pass::kNaive) {
    first_record["speedup"] = Median(inverse);
  }
}

}  // namespace

class CoreRounds::Impl {
 public:
  explicit Impl(const Sampling& sampling) : sampling_(sampling) {}

  std::vector<Json> Measure(const Group& group) {
    TimedCases cases;
    for (const Case& c : group) {
      AttentionEngine& engine = EngineOf(c);
      cases.push_back(std::make_unique<TimedCase>(c, engine));
      cases.back()->other_limit =
          c.ReadsMost() ? FmaPeak(engine) : stream_.Measure(engine.scheduler());
    }
    bool steady = true;
    const std::vector<Round> rounds = Rounds(cases, steady);
    std::vector<Json> records;
    Shares first;
    for (size_t i = 0; i < cases.size(); ++i) {
      Shares shares = SharesOf(*cases[i], i, rounds);
      records.push_back(RecordFor(*cases[i], shares));
      records.back()["steady"] = steady;
      if (i == 0) {
        first = std::move(shares);
      } else {
        Compare(*cases[0], first, *cases[i], shares, records[0], records[i]);
      }
    }
    return records;
  }

  Json StreamRecords() const { return stream_.Records(); }

 private:
  // Returns the rounds in which the machine kept its speed, or all rounds if
  // these are too few.
  std::vector<Round> Rounds(const TimedCases& cases, bool& steady) {
    const double budget =
        sampling_.seconds_per_case * static_cast<double>(cases.size());
    const auto at_least = static_cast<size_t>(sampling_.min_rounds);
    std::vector<Round> kept, others;
    double spent = 0;  // in bursts that count
    double patience = kPatience * budget;
    while (kept.size() < at_least ||
           (spent < budget && kept.size() < kMaxRounds)) {
      if (patience <= 0 && kept.size() + others.size() >= at_least) break;
      Round round;
      double seconds = 0;
      bool keeps = true;
      for (const auto& it : cases) {
        round.push_back(TakeTurn(*it, patience));
        seconds += round.back().seconds * it->burst;
        keeps = keeps && round.back().kept_pace;
      }
      if (keeps) spent += seconds;
      (keeps ? kept : others).push_back(std::move(round));
    }
    steady = kept.size() >= at_least;
    if (!steady) kept.insert(kept.end(), others.begin(), others.end());
    return kept;
  }

  // Repeats a turn that does not count while `patience` lasts. `patience` is in
  // seconds, and the time of such turns and of waiting is subtracted from it.
  Turn TakeTurn(TimedCase& it, double& patience) {
    for (;;) {
      const Turn turn = TryTurn(it, patience);
      if (turn.kept_pace || patience <= 0) return turn;
      patience -= turn.seconds * it.burst;
    }
  }

  // If the case uses AMX, waits until it is fast. AMX is measured right before
  // and after the burst, because slow times begin and end at any moment.
  Turn TryTurn(TimedCase& it, double& patience) {
    const double before = Bound(it);
    bool at_pace = AwaitAmx(it, before, patience);
    const double seconds = it.Burst();
    at_pace = at_pace && AmxAtPace(it, before);
    const double after = Bound(it);
    const auto [low, high] = std::minmax(before, after);
    return {.seconds = seconds,
            .bound = (before + after) / 2,
            .kept_pace = at_pace && high < (1 + kDrift) * low};
  }

  double Bound(const TimedCase& it) {
    return it.c.ReadsMost() ? stream_.Measure(it.engine.scheduler())
                            : FmaPeak(it.engine);
  }

  bool AwaitAmx(const TimedCase& it, double fma_peak, double& patience) {
    const Clock::time_point start = Clock::now();
    bool at_pace = AmxAtPace(it, fma_peak);
    while (!at_pace && SecondsSince(start) < patience) {
      at_pace = AmxAtPace(it, fma_peak);
    }
    patience -= SecondsSince(start);
    return at_pace;
  }

  // Returns true for cases that do not use AMX.
  bool AmxAtPace(const TimedCase& it, double fma_peak) {
    if (!it.of_amx()) return true;
    const int threads = it.c.threads;
    const double rate = MeasureAmxRate(it.engine.scheduler());
    double& best = best_amx_rates_[threads];
    best = std::max(best, rate);
    return rate >= std::max(kAmxPace * best, kAmxOverFma * fma_peak / threads);
  }

  AttentionEngine& EngineOf(const Case& c) {
    std::unique_ptr<AttentionEngine>& engine = engines_[{c.threads, c.isa}];
    if (!engine) {
      engine = MakePinnedEngine({.threads = c.threads, .force_isa = c.isa});
      LearnPace(c.threads, *engine);
    }
    return *engine;
  }

  // Finds the best speed of AMX on this machine. This takes long enough to
  // outlast most of the times in which AMX is slow.
  void LearnPace(int threads, AttentionEngine& engine) {
    double& best = best_amx_rates_[threads];
    if (best > 0) return;
    for (int i = 0; i < 1000; ++i) {
      best = std::max(best, MeasureAmxRate(engine.scheduler()));
    }
  }

  // Uses the widest instruction set, even if the case is forced to another one.
  double FmaPeak(AttentionEngine& engine) const {
    return MeasureFmaPeak(isa_, milliseconds(10), engine.scheduler(),
                          engine.threads());
  }

  const Sampling sampling_;
  const Isa isa_ = MachineInfo::Detect().isa;
  StreamBandwidth stream_;
  std::map<std::pair<int, std::optional<Isa>>, std::unique_ptr<AttentionEngine>>
      engines_;
  std::map<int, double>
      best_amx_rates_;  // by threads, the rate of the slowest worker
};

CoreRounds::CoreRounds(const Sampling& sampling)
    : impl_(std::make_unique<Impl>(sampling)) {}

CoreRounds::~CoreRounds() = default;

std::vector<Json> CoreRounds::Measure(const Group& group) {
  return impl_->Measure(group);
}

Json CoreRounds::StreamRecords() const { return impl_->StreamRecords(); }

double FmasPerCycle() {
  const Isa isa = MachineInfo::Detect().isa;
  const double lanes = static_cast<double>(GeometryOf(isa).lanes);
  std::vector<double> ratios;
  for (int i = 0; i < 9; ++i) {
    const double peak = MeasureFmaPeak(isa, milliseconds(10));
    ratios.push_back(peak / (2 * lanes) / MeasureClock());
  }
  return Median(ratios);
}

}  // namespace attnd::bench
