// Chains of dependent multiply-adds that live in registers from start to end.
// There are more of them than a multiply-add has cycles times units, each has a
// value of its own, and all numbers come from where the compiler cannot see
// them: it can neither fold two chains into one nor compute any beforehand.
#include "core/fma_peak.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/fma_peak.cc"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/targets.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
// What "scalar" code can reach is what its compiler makes of it, and every
// baseline has vectors of four floats.
using Vec = float __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;
inline Vec Spread(float x) { return Vec{x, x, x, x}; }
inline Vec Step(Vec a, Vec b, Vec c) { return a * b + c; }
inline float FirstOf(Vec x) { return x[0]; }
#else
namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::ScalableTag<float>;
using Vec = hn::Vec<Floats>;
constexpr int64_t kLanes = hn::MaxLanes(Floats());
HWY_INLINE Vec Spread(float x) { return hn::Set(Floats(), x); }
HWY_INLINE Vec Step(Vec a, Vec b, Vec c) { return hn::MulAdd(a, b, c); }
HWY_INLINE float FirstOf(Vec x) { return hn::GetLane(x); }
#endif

// Of 32 registers with AVX-512, else of 16; two hold the constants.
#define ATTND_12_CHAINS(F) \
  F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#if HWY_TARGET <= HWY_AVX3
#define ATTND_MORE_CHAINS(F) \
  F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23)
constexpr int64_t kChains = 24;
#else
#define ATTND_MORE_CHAINS(F)
constexpr int64_t kChains = 12;
#endif
#define ATTND_CHAINS(F) ATTND_12_CHAINS(F) ATTND_MORE_CHAINS(F)

}  // namespace

// Runs `steps` multiply-adds in every chain; returns how many operations that
// were. `seed` is read and written, which keeps the chains alive. Values move
// from [0, 24] towards 1: nothing overflows or becomes denormal.
int64_t RunChains(int64_t steps, volatile float* seed) {
  const Vec factor = Spread(*seed);
  const Vec addend = Spread(1.0F - *seed);
#define ATTND_START(i) Vec x##i = Spread(*seed + static_cast<float>(i));
#define ATTND_STEP(i) x##i = Step(x##i, factor, addend);
#define ATTND_USE(i) sum += FirstOf(x##i);
  ATTND_CHAINS(ATTND_START)
  for (int64_t step = 0; step < steps; ++step) {
    ATTND_CHAINS(ATTND_STEP)
  }
  float sum = 0;
  ATTND_CHAINS(ATTND_USE)
#undef ATTND_START
#undef ATTND_STEP
#undef ATTND_USE
  *seed = sum > 0 ? 0.5F : 0.25F;
  return steps * kChains * kLanes * 2;
}
#undef ATTND_CHAINS
#undef ATTND_MORE_CHAINS
#undef ATTND_12_CHAINS

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {
namespace {

using Clock = std::chrono::steady_clock;

// What a thread measured so far.
struct Share {
  int64_t operations = 0;
  std::chrono::nanoseconds busy{0};

  double Rate() const {
    return busy.count() > 0 ? static_cast<double>(operations) /
                                  std::chrono::duration<double>(busy).count()
                            : 0;
  }
};

// Adds to `share` until it was busy for `duration` or `stop` says so.
template <typename Stop>
void Measure(Isa isa, std::chrono::nanoseconds duration, Stop stop,
             Share& share) {
  // A few microseconds a call: the clock is read seldom, yet often enough.
  constexpr int64_t kSteps = 2000;
  const auto chains = ATTND_FUNCTION(isa, RunChains);
  volatile float seed = 0.5F;
  // Wide vectors start at a fraction of their speed until their units are on.
  chains(kSteps, &seed);
  const std::chrono::nanoseconds before = share.busy;
  const auto start = Clock::now();
  do {
    share.operations += chains(kSteps, &seed);
    share.busy = before + (Clock::now() - start);
  } while (share.busy < duration && !stop());
}

// One thread's share is a task: it waits until all have begun, then measures,
// and makes way for other jobs as every task does.
class PeakJob : public TileJob {
 public:
  PeakJob(Isa isa, std::chrono::nanoseconds duration, int64_t threads)
      : isa_(isa), duration_(duration), shares_(static_cast<size_t>(threads)) {}

  std::vector<Phase> Phases() const override {
    const auto threads = static_cast<int64_t>(shares_.size());
    return {{.tasks = threads, .slots = threads}};
  }

  Slice Run(int64_t /*phase*/, int64_t task, int64_t /*slot*/,
            SliceControl& control) override {
    Share& share = shares_[static_cast<size_t>(task)];
    const auto stop = [&] {
      return control.ShouldStop() || control.ShouldYield();
    };
    if (share.operations == 0) {
      // Threads that share clocks or units must run at once. Where other jobs
      // hold the workers the wait is given up: then each runs as it comes.
      const auto give_up = Clock::now() + duration_;
      begun_.fetch_add(1, std::memory_order_relaxed);
      while (begun_.load(std::memory_order_relaxed) <
                 static_cast<int64_t>(shares_.size()) &&
             Clock::now() < give_up && !stop()) {
        std::this_thread::yield();
      }
    }
    Measure(isa_, duration_, stop, share);
    return share.busy < duration_ && !control.ShouldStop() ? Slice::kYield
                                                           : Slice::kDone;
  }

  double TotalRate() const {
    double total = 0;
    for (const Share& share : shares_) total += share.Rate();
    return total;
  }

 private:
  const Isa isa_;
  const std::chrono::nanoseconds duration_;
  std::atomic<int64_t> begun_{0};
  std::vector<Share> shares_;  // each written by its task alone
};

}  // namespace

double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration) {
  Share share;
  Measure(
      isa, duration, [] { return false; }, share);
  return share.Rate();
}

double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration,
                      TileScheduler& scheduler, int64_t threads,
                      const StopSignal* stop) {
  PeakJob job(isa, duration,
              std::clamp<int64_t>(threads, 1, scheduler.threads()));
  // The caller knows whether `stop` ended it. If the scheduler shuts down, the
  // result covers what ran before that.
  scheduler.Run(&job, stop).IgnoreError();
  return job.TotalRate();
}

}  // namespace attnd
#endif  // HWY_ONCE
